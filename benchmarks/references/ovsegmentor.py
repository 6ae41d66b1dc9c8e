"""OVSegmentor written out plainly over a state dict with the official names: what our modules and loader are compared with.

One image or text at a time wherever that is plainer, no noise, running statistics. Follows the paper's section 3 and what the
official code was seen to do, step by step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Weights = dict[str, Tensor]
HEADS, PATCH = 8, 16


class OfficialWeights:
    """Random weights with the official names and shapes, made layer by layer."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.state: Weights = {}

    def linear(self, name: str, out: int, into: int, *kernel: int) -> None:
        self.state[f"{name}.weight"] = torch.randn(out, into, *kernel) * (into * int(np.prod(kernel))) ** -0.5
        self.state[f"{name}.bias"] = torch.randn(out) * 0.1

    def norm(self, name: str, size: int = 0) -> None:
        for part, base in (("weight", 1), ("bias", 0)):
            self.state[f"{name}.{part}"] = base + torch.randn(size or self.width) * 0.1

    def mlp(self, name: str, hidden: int = 0, into: int = 0, out: int = 0) -> None:
        hidden = hidden or 4 * self.width
        self.linear(f"{name}.fc1", hidden, into or self.width)
        self.linear(f"{name}.fc2", out or self.width, hidden)

    def block(self, name: str) -> None:
        for part in ("norm1", "norm2"):
            self.norm(f"{name}.{part}")
        self.linear(f"{name}.attn.qkv", 3 * self.width, self.width)
        self.linear(f"{name}.attn.proj", self.width, self.width)
        self.mlp(f"{name}.mlp")

    def projections(self, name: str) -> None:
        for part in ("q_proj", "k_proj", "v_proj", "proj"):
            self.linear(f"{name}.{part}", self.width, self.width)

    def reader(self, name: str) -> None:
        self.norm(f"{name}.norm_post")
        self.projections(f"{name}.attn")
        self.norm(f"{name}.norm2")
        self.mlp(f"{name}.mlp")

    def encoder(self, name: str, depths: tuple[int, int], tokens: int, groups: int, side: int) -> None:
        self.state[f"{name}.pos_embed"] = torch.randn(1, side * side, self.width) * 0.5
        self.linear(f"{name}.patch_embed.proj", self.width, 3, PATCH, PATCH)
        self.state[f"{name}.layers.0.group_token"] = torch.randn(1, tokens, self.width) * 0.5
        for stage, depth in enumerate(depths):
            for index in range(depth):
                self.block(f"{name}.layers.{stage}.blocks.{index}")
        binding = f"{name}.layers.0.downsample"
        for part in ("norm_tokens", "norm_post_tokens", "norm_x", "norm_new_x"):
            self.norm(f"{binding}.{part}")
        self.mlp(f"{binding}.mlp_inter", self.width // 2, tokens, groups)
        self.reader(f"{binding}.pre_assign_attn")
        self.projections(f"{binding}.assign")
        for part in ("q_proj", "k_proj"):  # random ones assign nearly everything to one group
            self.state[f"{binding}.assign.{part}.weight"] *= 3
        self.mlp(f"{binding}.mlp_channels")
        self.norm(f"{name}.norm")

    def head(self, name: str, hidden: int, joint: int) -> None:
        self.linear(f"{name}.linear_hidden.0", hidden, self.width, 1)
        self.norm(f"{name}.linear_hidden.1", hidden)
        self.state[f"{name}.linear_hidden.1.running_mean"] = torch.randn(hidden) * 0.1
        self.state[f"{name}.linear_hidden.1.running_var"] = torch.rand(hidden) + 0.5
        self.state[f"{name}.linear_hidden.1.num_batches_tracked"] = torch.tensor(0)
        self.linear(f"{name}.linear_out", joint, hidden, 1)


def random_weights(
    *, width: int, depths: tuple[int, int], tokens: int, groups: int, hidden: int, joint: int, side: int = 14
) -> Weights:
    """Random weights with the official names and shapes."""
    made = OfficialWeights(width)
    made.state["logit_scale"], made.state["logit_scale_mask"] = torch.tensor(2.5), torch.tensor(2.6)
    for name in ("img_encoder", "img_encoder_momentum"):
        made.encoder(name, depths, tokens, groups, side)
    for name in ("img_projector", "text_projector", "bridge_projector"):
        made.head(name, hidden, joint)
    decoder = "multimodal_groupingblock.blocks.0"
    for part in ("norm_tokens", "norm_x", "norm_new_x"):
        made.norm(f"{decoder}.{part}")
    made.reader(f"{decoder}.pre_assign_attn")
    made.block(f"{decoder}.post_attn")
    made.projections(f"{decoder}.assign")
    return made.state


# ------------------------------------------------------------------------------------------------------------------ parts


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"].flatten(1), w[f"{name}.bias"])


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.fc2", F.gelu(linear(w, f"{name}.fc1", x)))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q), heads(k), heads(v)
    read = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return read.transpose(1, 2).flatten(2)


def block(w: Weights, name: str, x: Tensor) -> Tensor:
    q, k, v = linear(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x)).chunk(3, -1)
    x = x + linear(w, f"{name}.attn.proj", attend(q, k, v))
    return x + mlp(w, f"{name}.mlp", norm(w, f"{name}.norm2", x))


def read(w: Weights, name: str, query: Tensor, x: Tensor) -> Tensor:
    q, k, v = linear(w, f"{name}.attn.q_proj", query), linear(w, f"{name}.attn.k_proj", x), linear(w, f"{name}.attn.v_proj", x)
    query = query + linear(w, f"{name}.attn.proj", attend(q, k, v))
    query = query + mlp(w, f"{name}.mlp", norm(w, f"{name}.norm2", query))
    return norm(w, f"{name}.norm_post", query)


def head(w: Weights, name: str, x: Tensor) -> Tensor:
    x = linear(w, f"{name}.linear_hidden.0", x)
    inner = f"{name}.linear_hidden.1"
    x = (x - w[f"{inner}.running_mean"]) / (w[f"{inner}.running_var"] + 1e-5).sqrt() * w[f"{inner}.weight"] + w[f"{inner}.bias"]
    return linear(w, f"{name}.linear_out", x.relu())


def encode(w: Weights, name: str, image: Tensor) -> dict[str, Tensor]:
    """Group features, the assignment's q and k, and its softmax over groups."""
    x = F.conv2d(image, w[f"{name}.patch_embed.proj.weight"], w[f"{name}.patch_embed.proj.bias"], stride=PATCH)
    grid = x.shape[-2:]
    positions = w[f"{name}.pos_embed"].flatten(0, -2)
    side = round(len(positions) ** 0.5)
    if grid != (side, side):
        square = positions.T.reshape(1, -1, side, side)
        positions = F.interpolate(square, size=grid, mode="bicubic", align_corners=False).flatten(2)[0].T
    x = x.flatten(2).transpose(1, 2) + positions
    patches = x.shape[1]
    x = torch.cat([x, w[f"{name}.layers.0.group_token"].expand(len(x), -1, -1)], 1)
    for index in range(depth(w, f"{name}.layers.0.blocks.")):
        x = block(w, f"{name}.layers.0.blocks.{index}", x)
    part = f"{name}.layers.0.downsample"
    tokens, x = norm(w, f"{part}.norm_tokens", x[:, patches:]), norm(w, f"{part}.norm_x", x[:, :patches])
    u = norm(w, f"{part}.norm_post_tokens", mlp(w, f"{part}.mlp_inter", tokens.transpose(1, 2)).transpose(1, 2))
    u = read(w, f"{part}.pre_assign_attn", u, x)
    q, k, v = (linear(w, f"{part}.assign.{each}_proj", y) for each, y in (("q", u), ("k", x), ("v", x)))
    soft = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(1)
    hard = F.one_hot(soft.argmax(1), soft.shape[1]).transpose(1, 2) - soft.detach() + soft
    s = linear(w, f"{part}.assign.proj", hard / (hard.sum(-1, keepdim=True) + 1) @ v) + u
    s = s + mlp(w, f"{part}.mlp_channels", norm(w, f"{part}.norm_new_x", s))
    for index in range(depth(w, f"{name}.layers.1.blocks.")):
        s = block(w, f"{name}.layers.1.blocks.{index}", s)
    return {"features": norm(w, f"{name}.norm", s), "q": q, "k": k, "soft": soft}


def depth(w: Weights, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in w if name.startswith(prefix)})


# ----------------------------------------------------------------------------------------------------------------- losses


def contrast(w: Weights, a: Tensor, b: Tensor) -> Tensor:
    logits = w["logit_scale"].exp().clamp(max=100) * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    own = torch.arange(len(a))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def complete(w: Weights, question: Tensor, groups: Tensor) -> Tensor:
    name = "multimodal_groupingblock.blocks.0"
    p = read(w, f"{name}.pre_assign_attn", norm(w, f"{name}.norm_tokens", question), norm(w, f"{name}.norm_x", groups))
    return head(w, "bridge_projector", norm(w, f"{name}.norm_new_x", block(w, f"{name}.post_attn", p) + p)[:, 0])


def masks(w: Weights, own: dict[str, Tensor], other: dict[str, Tensor], entity: Tensor, size: int) -> Tensor:
    """Unweighted; of square images alone, as the official code."""
    scale = own["q"].shape[-1] ** -0.5
    relevance = (head(w, "img_projector", own["features"]) * head(w, "text_projector", entity)[:, None]).sum(-1).detach()
    total = torch.zeros(())
    for index in range(len(own["q"])):
        predicted = own["q"][index] @ other["k"][index].T * scale
        target = (other["q"][index] @ other["k"][index].T * scale).detach()
        irrelevant = relevance[index].argsort()[: int(len(predicted) * 0.5)]
        open_ = torch.ones(len(predicted), 1, dtype=torch.bool).index_fill(0, irrelevant, False)
        predicted = torch.where(open_, predicted, predicted.detach())
        predicted, target = upsample(predicted, size), upsample(target, size)
        with torch.no_grad():
            cost = torch.cdist(F.normalize(predicted.flatten(1))[None], F.normalize(target.flatten(1))[None])[0]
            chosen = linear_sum_assignment(cost.numpy())[1] if bool(cost.isfinite().all()) else range(len(cost))
        target = target[list(chosen)].sigmoid()
        wanted = (target >= 0.6 * target.amax((1, 2), keepdim=True)).float()
        low, high = predicted.amin((1, 2), keepdim=True), predicted.amax((1, 2), keepdim=True)
        shown = (predicted - low) / (high - low)
        total = total + 1 - (2 * (shown * wanted).sum() + 1) / (shown.sum() + wanted.sum() + 1)
    return total / own["q"].shape[1]


def upsample(maps: Tensor, size: int) -> Tensor:
    side = round(maps.shape[-1] ** 0.5)
    return F.interpolate(maps.reshape(1, -1, side, side), size=(size, size), mode="bilinear", align_corners=True)[0]


def losses(w: Weights, case: dict[str, Tensor]) -> dict[str, Tensor]:
    """matching, entity, mask (unweighted) and loss, their weighted sum."""
    own = encode(w, "img_encoder", case["image"])
    with torch.no_grad():
        other = encode(w, "img_encoder_momentum", case["cross_image"])
    caption, answer = (head(w, "text_projector", case[f"{name}_features"][:, 0]) for name in ("caption", "answer"))
    matching = contrast(w, head(w, "img_projector", own["features"].mean(1)), caption)
    entity = contrast(w, complete(w, case["question_features"], own["features"]), answer)
    mask = masks(w, own, other, case["entity_features"][:, 0], case["image"].shape[-1])
    return {"matching": matching, "entity": entity, "mask": mask, "loss": matching + entity + 0.1 * mask}


# -------------------------------------------------------------------------------------------------------------- inference


def segment(w: Weights, image: Tensor, texts: Tensor, threshold: float | None) -> Tensor:
    """Scores [n, H, W] of one window [1, 3, H, W], background first where there is a threshold for it."""
    encoded = encode(w, "img_encoder", image)
    height, width = image.shape[-2:]
    soft = encoded["soft"].unflatten(-1, (height // PATCH, width // PATCH))
    group = F.interpolate(soft, size=(height, width), mode="bilinear", align_corners=False)[0].argmax(0)
    scale = w["logit_scale"].exp().clamp(max=100)
    features = encoded["features"][0]
    each = scale * F.normalize(head(w, "img_projector", features), dim=-1) @ texts.T
    whole = scale * F.normalize(head(w, "img_projector", features.mean(0)), dim=-1) @ texts.T
    top = whole.topk(min(5, len(texts))).indices
    among = torch.full_like(each, -torch.inf).index_copy(1, top, each[:, top]).softmax(-1)
    scores = each.softmax(-1) * among
    logits = scores[group].permute(2, 0, 1)
    if threshold is None:
        return logits
    background = (logits.amax(0, keepdim=True) < min(threshold, scores.max().item())).float()
    return torch.cat([background, logits])
