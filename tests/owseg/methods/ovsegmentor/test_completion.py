"""Masked entity completion against the whole decoder block in torch's and timm's own modules."""

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from owseg.methods.ovsegmentor.completion import EntityCompletion
from owseg.methods.ovsegmentor.text_tower import Texts

WIDTH, HEADS, LENGTH = 32, 4, 9


def inputs(text_width: int = WIDTH) -> tuple[Texts, Tensor]:
    """Three texts, of nine, six and two tokens, whose sentence features lie at different places; and five groups each."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, LENGTH, text_width, generator=generator).requires_grad_()
    real = torch.arange(LENGTH) < torch.tensor([[9], [6], [2]])
    return Texts(features, real, torch.tensor([0, 5, 1])), torch.randn(3, 5, WIDTH, generator=generator).requires_grad_()


def completion(text_width: int = WIDTH) -> EntityCompletion:
    torch.manual_seed(0)
    block = EntityCompletion(WIDTH, HEADS, text_width)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def reference(block: EntityCompletion, question: Texts, groups: Tensor, mask: Tensor | None) -> Tensor:
    """All tokens [B, L, C] through the block: timm's Block for the self-attention, torch's attention for the groups."""
    post = Block(WIDTH, HEADS, qkv_bias=True, norm_layer=nn.LayerNorm)
    post.load_state_dict(block.post_attn.state_dict())
    reader = block.pre_assign_attn
    cross = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    projections = [getattr(reader.attn, f"{name}_proj") for name in "qkv"]
    cross.load_state_dict(
        {
            "in_proj_weight": torch.cat([x.weight for x in projections]),
            "in_proj_bias": torch.cat([x.bias for x in projections]),
            "out_proj.weight": reader.attn.proj.weight,
            "out_proj.bias": reader.attn.proj.bias,
        }
    )
    tokens, groups = block.norm_tokens(block.align(question.features)), block.norm_x(groups)
    tokens = tokens + cross(tokens, groups, groups, need_weights=False)[0]
    tokens = reader.norm_post(tokens + reader.mlp(reader.norm2(tokens)))
    read: Tensor = block.norm_new_x(post(tokens, attn_mask=mask) + tokens)
    return read


@pytest.mark.parametrize("ignore_padding", [True, False])
@pytest.mark.parametrize("text_width", [WIDTH, 48])
def test_it_is_the_whole_blocks_output_at_the_sentence_token(ignore_padding: bool, text_width: int) -> None:
    """Its gradients too; a text tower of another width is aligned."""
    question, groups = inputs(text_width)
    block = completion(text_width)
    completed = block(question, groups, ignore_padding=ignore_padding)
    mask = None if ignore_padding else question.real[:, None, None]
    expected = reference(block, question, groups, mask)[torch.arange(3), question.position]

    torch.testing.assert_close(completed, expected)
    gradients = [torch.autograd.grad(x.square().sum(), [question.features, groups]) for x in (completed, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padding_counts_only_where_it_is_ignored_that_it_is_padding() -> None:
    question, groups = inputs()
    block = completion()
    other = question._replace(features=torch.where(question.real[..., None], question.features, 7.0))
    masked, attended = (
        [block(texts, groups, ignore_padding=ignored) for texts in (question, other)] for ignored in (False, True)
    )

    torch.testing.assert_close(masked[0], masked[1], rtol=0, atol=0)
    torch.testing.assert_close(attended[0][0], attended[1][0], rtol=0, atol=0)  # a text without padding
    assert (attended[0] - attended[1])[1:].abs().amax(dim=1).min() > 1e-3
    trimmed = Texts(question.features[2:, :2], question.real[2:, :2], question.position[2:])
    torch.testing.assert_close(block(trimmed, groups[2:], ignore_padding=True), masked[0][2:])


def test_every_parameter_learns() -> None:
    """None is dead, as in the official block, so engines need not look for unused ones."""
    question, groups = inputs(48)
    block = completion(48)
    block(question, groups, ignore_padding=False).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in block.parameters())
