"""Where OVSegmentor's image tower begins: a timm ViT (DINO's) or the run's CLIP.

Either has one row of blocks, which binding cuts in half. What binding adds, the learnable tokens and the grouping block, begins
at random.
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from owseg import InputError
from owseg.encoders import resize_grid
from owseg.methods.ovsegmentor.grouping import GroupingEncoder
from owseg.vit import timm_state, timm_vit
from owseg.weights import differences

TOWER, WEIGHTS, HEADS = (f"method_settings.ovsegmentor.{key}" for key in ("image_tower", "image_weights", "heads"))
OUTSIDE_A_TOWER = {"cls_token", "head.weight", "head.bias"}
"""What a ViT has and a grouping encoder does not."""
CLIP_NAMES = {
    "conv1.": "patch_embed.proj.",
    "positional_embedding": "pos_embed",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
    "transformer.resblocks.": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
"""Parts of the names in open_clip's image towers, and timm's for them."""


def vit_tower(model: str, *, heads: int, tokens: int, groups: int, drop_path: float) -> GroupingEncoder:
    """The architecture of a timm ViT, with random weights. Its number of attention heads gives way to `heads`, but for 0.

    Raises InputError where timm has no such model, or it is no plain ViT: patches, learned positions, blocks, LayerNorm.
    """
    from timm.layers import QuickGELU

    with torch.device("meta"):  # no memory for weights that are not wanted
        vit = timm_vit(model, TOWER)
    heads = heads or vit.blocks[0].attn.num_heads
    _check_heads(heads, vit.embed_dim, model)
    activation = vit.blocks[0].mlp.act
    tower = GroupingEncoder(
        width=vit.embed_dim,
        depths=_halves(len(vit.blocks)),
        heads=heads,
        patch_size=vit.patch_embed.patch_size[0],
        grid=vit.patch_embed.grid_size,
        tokens=tokens,
        groups=groups,
        drop_path=drop_path,
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
        quick_gelu=isinstance(activation, QuickGELU),
    )
    wrong = "" if isinstance(activation, nn.GELU | QuickGELU) else "its activation is neither GELU nor QuickGELU"
    wrong = wrong or _misfits(_without_class(vit.state_dict(), tower), tower)
    if wrong:
        raise InputError(f"{TOWER}: {model} is no plain ViT ({wrong}); choose one such as vit_base_patch16_224.dino")
    return tower


def load_vit(tower: GroupingEncoder, model: str, weights: str) -> None:
    """Fills a tower from timm's weights of `model` or, where `weights` names one, from a file with timm's or DINO's names.

    The class token, its position and a classifier's head are left aside; positions of another grid are resized. Raises
    InputError where the weights cannot be had or do not fit.
    """
    source, state = timm_state(model, weights, tower=TOWER, file=WEIGHTS)
    _fill(tower, state, source, model)


def clip_tower(visual: Any, *, heads: int, tokens: int, groups: int, drop_path: float) -> GroupingEncoder:
    """A trainable tower that begins with the weights of an open_clip VisionTransformer; heads 0 = as many as that has.

    Class token and projection are left out. Raises InputError where the CLIP has more than plain blocks.
    """
    from open_clip.transformer import QuickGELU as ClipQuickGELU

    blocks = visual.transformer.resblocks
    heads = heads or blocks[0].attn.num_heads
    width = visual.conv1.out_channels
    _check_heads(heads, width, "the CLIP")
    pre_norm = not isinstance(visual.ln_pre, nn.Identity)
    tower = GroupingEncoder(
        width=width,
        depths=_halves(len(blocks)),
        heads=heads,
        patch_size=visual.patch_size[0],
        grid=visual.grid_size,
        tokens=tokens,
        groups=groups,
        drop_path=drop_path,
        pre_norm=pre_norm,
        quick_gelu=isinstance(blocks[0].mlp.gelu, ClipQuickGELU),
    )
    state = {_renamed(name): value for name, value in visual.state_dict().items() if name not in ("class_embedding", "proj")}
    state["pos_embed"] = state["pos_embed"][None]
    if not pre_norm:
        state["patch_embed.proj.bias"] = torch.zeros(width)  # CLIP has none
    _fill(tower, state, "encoder.model: its image tower", "a plain ViT")
    return tower


def _renamed(name: str) -> str:
    for theirs, ours in CLIP_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _halves(depth: int) -> tuple[int, int]:
    return depth // 2, depth - depth // 2


def _check_heads(heads: int, width: int, model: str) -> None:
    if heads < 1 or width % heads:
        raise InputError(f"{HEADS}: {heads} heads do not divide the width {width} of {model}")


def _fill(tower: GroupingEncoder, state: dict[str, Any], source: str, model: str) -> None:
    """Copies weights of timm's names into the tower. Raises InputError, begun with `source`, where they do not fit."""
    state = _without_class(state, tower)
    wrong = _misfits(state, tower)
    if wrong:
        raise InputError(f"{source} does not fit {model}: {wrong}")
    with torch.no_grad():
        for name, ours in _vit_names(tower).items():
            tower.get_parameter(ours).copy_(state[name].reshape_as(tower.get_parameter(ours)))


def _misfits(state: dict[str, Any], tower: GroupingEncoder) -> str:
    """How a ViT's tensors differ from those that the tower takes, in words; empty where they do not."""
    wanted = {name: tower.get_parameter(ours) for name, ours in _vit_names(tower).items()}
    return differences(state, wanted | {"pos_embed": tower.positions[None]})


def _vit_names(tower: GroupingEncoder) -> dict[str, str]:
    """timm's names of a ViT's tensors, and the tower's for the same."""
    early = len(tower.early)
    theirs = {"patches": "patch_embed.proj", "positions": "pos_embed", "norm": "norm", "norm_pre": "norm_pre"}
    theirs |= {f"early.{index}": f"blocks.{index}" for index in range(early)}
    theirs |= {f"late.{index}": f"blocks.{early + index}" for index in range(len(tower.late))}
    names = {}
    for ours, _ in tower.named_parameters():
        part = next((part for part in theirs if ours == part or ours.startswith(f"{part}.")), None)
        if part is not None:
            names[theirs[part] + ours.removeprefix(part)] = ours
    return names


def _without_class(state: dict[str, Any], tower: GroupingEncoder) -> dict[str, Any]:
    """A ViT's tensors without class token and head, and with positions for the tower's patches alone where that can be.

    Positions of another grid must be a square's. A class position comes first.
    """
    state = {name: value for name, value in state.items() if name not in OUTSIDE_A_TOWER}
    positions = state.get("pos_embed")
    if isinstance(positions, Tensor) and positions.ndim == 3:
        rows, side = positions.shape[1], isqrt(positions.shape[1])
        if rows - len(tower.positions) in (0, 1):
            state["pos_embed"] = positions[:, rows - len(tower.positions) :]
        elif rows - side**2 in (0, 1):
            patches = positions[0, rows - side**2 :].float()
            state["pos_embed"] = resize_grid(patches, (side, side), tower.grid)[None]
    return state
