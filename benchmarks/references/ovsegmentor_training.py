"""OVSegmentor's second training stage in the official order of work (2301.09121), written plainly.

Every text in a pass of its own with all its padding; token and group features projected along with the pooled ones, whether or
not a loss reads them (batch norm's running statistics see them); the momentum encoder run to its end; masks upsampled to the
image's size, samples matched one by one on the CPU.

The measuring stick of benchmarks/ovsegmentor_step.py and tests/owseg/methods/ovsegmentor/test_lean.py. It shares the weights
and the text tower of an OvSegmentor with the package, and timm's ViT blocks, but no line of the rest. One process.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from owseg.methods.ovsegmentor import OvSegmentor

TEXTS = ("caption", "question", "answer", "prompt")


class Seen(NamedTuple):
    """What the image tower makes of images."""

    groups: Tensor
    """[B, K, C]: each group's feature."""
    q: Tensor
    """[B, K, C]: queries of the assignment."""
    k: Tensor
    """[B, P, C]: keys of the assignment."""


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention [B, Q, C], the shares [B, heads, Q, N] written out."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    shares = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (shares @ v).transpose(1, 2).flatten(2)


def read(layer: Any, query: Tensor, tokens: Tensor) -> Tensor:
    """x = q + MHA(q, tokens); x = x + MLP(LN(x)); LN(x)."""
    attn = layer.attn
    x = query + attn.proj(attention(attn.q_proj(query), attn.k_proj(tokens), attn.v_proj(tokens), attn.heads))
    x = x + layer.mlp(layer.norm2(x))
    out: Tensor = layer.norm_post(x)
    return out


def group(block: Any, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Segments [B, K, C], and the assignment's queries and keys, of patches [B, P, C] and learnable tokens [B, T, C]."""
    tokens, patches = block.norm_tokens(tokens), block.norm_x(patches)
    u = block.norm_post_tokens(block.mlp_inter(tokens.transpose(1, 2)).transpose(1, 2))
    u = read(block.pre_assign_attn, u, patches)
    assign = block.assign
    q, k, v = assign["q_proj"](u), assign["k_proj"](patches), assign["v_proj"](patches)
    logits = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if block.training:
        zero, one = logits.new_zeros(()), logits.new_ones(())
        logits = logits + torch.distributions.Gumbel(zero, one).sample(logits.shape)
    soft = logits.softmax(dim=1)
    hard = F.one_hot(soft.argmax(dim=1), logits.shape[1]).transpose(1, 2).to(soft.dtype)
    shares = hard - soft.detach() + soft
    shares = shares / (shares.sum(dim=-1, keepdim=True) + 1.0)
    s = assign["proj"](shares @ v) + u
    return s + block.mlp_channels(block.norm_new_x(s)), q, k


def project(head: Any, x: Tensor) -> Tensor:
    """Linear, batch norm over all leading dimensions, ReLU, Linear."""
    hidden, norm = head.hidden(x), head.norm
    if norm.training:
        norm.num_batches_tracked += 1
    normed = F.batch_norm(
        hidden.flatten(0, -2),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        momentum=0.1,
        eps=1e-5,
    )
    out: Tensor = head.out(F.relu(normed).view_as(hidden))
    return out


def see(encoder: Any, image: Tensor) -> Seen:
    """The tower, to its end. image: [B, 3, H, W] on the grid that the tower was built for."""
    x = encoder.norm_pre(encoder.patches(image).flatten(2).transpose(1, 2) + encoder.positions)
    patches = x.shape[1]
    x = torch.cat([x, encoder.tokens.expand(len(x), -1, -1)], dim=1)
    for block in encoder.early:
        x = block(x)
    s, q, k = group(encoder.grouping, x[:, :patches], x[:, patches:])
    for block in encoder.late:
        s = block(s)
    return Seen(encoder.norm(s), q, k)


def encode_image(encoder: Any, head: Any, image: Tensor) -> tuple[Seen, Tensor, Tensor]:
    """What the tower sees, and its projections: of the groups' mean [B, E], and of each group [B, K, E]."""
    seen = see(encoder, image)
    pooled = project(head, seen.groups.mean(dim=1))
    return seen, pooled, project(head, seen.groups)


def encode_text(method: OvSegmentor, features: Tensor, position: Tensor) -> Tensor:
    """Projected sentence features [B, E] of last hidden states [B, L, C]."""
    sentence = project(method.text_head, features[torch.arange(len(features), device=features.device), position])
    project(method.text_head, features)  # nobody reads it, but batch norm's running statistics count it
    return sentence


def complete(block: Any, features: Tensor, groups: Tensor) -> Tensor:
    """A question's tokens [B, L, C] after reading groups [B, K, C] and one another, padding like any other token."""
    p = read(block.pre_assign_attn, block.norm_tokens(block.align(features)), block.norm_x(groups))
    own = block.post_attn
    y = p + own.attn.proj(attention(*own.attn.qkv(own.norm1(p)).chunk(3, dim=-1), own.attn.heads))
    y = y + own.mlp(own.norm2(y))
    out: Tensor = block.norm_new_x(y + p)
    return out


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of rows [B, E]."""
    logits = log_scale.exp().clamp(max=100) * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def mask_consistency(q: Tensor, other: Seen, relevance: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Dice distance of what the online groups pick out on the other image to its own groups: their sum over K.

    q: [B, K, C], of the online groups; relevance: [B, K], of the online groups to the shared entity; grid: of the patches;
    size: of the image.
    """
    scale, count = q.shape[-1] ** -0.5, q.shape[1]
    predicted, target = q @ other.k.transpose(1, 2) * scale, other.q @ other.k.transpose(1, 2) * scale
    irrelevant = relevance.argsort(dim=1)[:, : int(count * 0.5)]
    learns = torch.ones_like(relevance, dtype=torch.bool).scatter_(1, irrelevant, False)
    predicted = torch.where(learns[..., None], predicted, predicted.detach())
    predicted, target = (
        F.interpolate(x.unflatten(-1, grid), size=size, mode="bilinear", align_corners=True).flatten(2)
        for x in (predicted, target)
    )
    total = predicted.new_zeros(())
    for mine, theirs in zip(predicted, target, strict=True):
        distances = torch.cdist(F.normalize(mine.detach(), dim=-1), F.normalize(theirs, dim=-1))
        rows, columns = linear_sum_assignment(distances.cpu().numpy())
        values = torch.sigmoid(theirs[torch.as_tensor(columns, device=mine.device)])
        binary = (values >= 0.6 * values.amax(dim=-1, keepdim=True)).to(mine.dtype)
        low, high = mine.amin(dim=-1, keepdim=True), mine.amax(dim=-1, keepdim=True)
        soft = ((mine - low) / (high - low))[torch.as_tensor(rows, device=mine.device)]
        total = total + 1 - (2 * (soft * binary).sum() + 1) / (soft.sum() + binary.sum() + 1)
    return total / count


def losses_from(
    method: OvSegmentor, image: Tensor, features: Mapping[str, Tensor], position: Mapping[str, Tensor], partner: Tensor
) -> dict[str, Tensor]:
    """The three weighted losses.

    image, partner: [B, 3, H, W]; features: of each of TEXTS the last hidden states [B, L, C]; position: [B], where the sentence
    feature lies in them.
    """
    config = method.config
    caption = encode_text(method, features["caption"], position["caption"])
    online, pooled, projected = encode_image(method.encoder, method.image_head, image)
    encode_text(method, features["question"], position["question"])  # for batch norm's statistics alone
    answer = encode_text(method, features["answer"], position["answer"])
    completed = complete(method.completion, features["question"], online.groups)
    bridged = project(method.answer_head, completed[torch.arange(len(completed), device=image.device), position["question"]])
    with torch.no_grad():
        other, *_ = encode_image(method.momentum, method.image_head, partner)
        prompt = encode_text(method, features["prompt"], position["prompt"])
    relevance = torch.einsum("bke,be->bk", projected.detach(), prompt)
    size = (image.shape[-2], image.shape[-1])
    return {
        "contrast": info_nce(pooled, caption, method.log_scale),
        "entity": config.entity_weight * info_nce(bridged, answer, method.log_scale),
        "mask": config.mask_weight * mask_consistency(online.q, other, relevance, method.encoder.grid, size),
    }


def losses(method: OvSegmentor, image: Tensor, tokens: Mapping[str, Tensor], partner: Tensor) -> dict[str, Tensor]:
    """The same, of the token ids [B, L] of each of TEXTS, padding and all."""
    texts = {name: method.text(tokens[name]) for name in TEXTS}
    features = {name: text.features for name, text in texts.items()}
    return losses_from(method, image, features, {name: text.position for name, text in texts.items()}, partner)


@torch.no_grad()
def update_momentum(method: OvSegmentor) -> None:
    """The momentum encoder's weights, one tensor after the other: 0.99 of their own and 0.01 of the online encoder's."""
    slow = dict(method.momentum.named_buffers())
    for name, parameter in method.encoder.named_parameters():
        slow[name].copy_(method.config.momentum * slow[name] + (1 - method.config.momentum) * parameter)
