"""Official OVSegmentor checkpoints: their names for our tensors, and the settings that their shapes tell."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from owseg import InputError
from owseg.published_layout import Layout, Prefixes, renamed

TEXT = "text_encoder."
"""Where an exported OVSegmentor keeps its text tower; in files that come in, any place will do."""
EMBEDDINGS = ("embeddings.word_embeddings.weight", "token_embedding.weight")
"""By which a text tower is found: how transformers and CLIP call the first of its tensors."""
OFFICIAL_THRESHOLDS = {"voc21": 0.95, "context60": 0.35, "coco_object": 0.90}
"""Background thresholds by benchmark, of the official evaluation."""
log = logging.getLogger(__name__)

_TOWER: Prefixes = (
    ("positions", "pos_embed"),
    ("patches.", "patch_embed.proj."),
    ("early.", "layers.0.blocks."),
    ("tokens", "layers.0.group_token"),
    ("grouping.", "layers.0.downsample."),
    ("late.", "layers.1.blocks."),
    ("norm.", "norm."),
    ("norm_pre.", "norm_pre."),  # a CLIP's, for which no official name is known
)
_HEADS = {"image_head.": "img_projector.", "text_head.": "text_projector.", "answer_head.": "bridge_projector."}
_HEAD: Prefixes = (("hidden.", "linear_hidden.0."), ("norm.", "linear_hidden.1."), ("out.", "linear_out."))
_ENCODER, _MOMENTUM = "img_encoder.", "img_encoder_momentum."
_COMPLETION = "multimodal_groupingblock."
_OVSEGMENTOR: Prefixes = (
    *((f"encoder.{ours}", _ENCODER + official) for ours, official in _TOWER),
    *((f"momentum.{ours}", _MOMENTUM + official) for ours, official in _TOWER),
    *((head + ours, projector + official) for head, projector in _HEADS.items() for ours, official in _HEAD),
    ("completion.align.", f"{_COMPLETION}align."),  # only for towers of unequal widths; the official name is not known
    ("completion.", f"{_COMPLETION}blocks.0."),
    ("log_scale", "logit_scale"),
)


def ovsegmentor_names(method: nn.Module, file: Collection[str]) -> dict[str, str]:
    """Of an `OvSegmentor`; the text tower lies where the file has one."""
    state = method.state_dict()
    prefixes = (*_OVSEGMENTOR, *text_prefixes(state, file))
    named = ((name, renamed(name, prefixes)) for name in state)
    return {name: official for name, official in named if official is not None}


def text_prefixes(ours: Collection[str], file: Collection[str]) -> Prefixes:
    """Where our text tower's names begin, and a file's (`TEXT` where there is no file, or it has no such tower).

    Raises InputError where the file has several text towers.
    """
    for embedding in EMBEDDINGS:
        for name in ours:
            if name.startswith("text.") and name.endswith(embedding):
                found = [other.removesuffix(embedding) for other in file if other.endswith(embedding)]
                if len(found) > 1:
                    raise InputError(f"several text towers ({found[0]}*, {found[1]}*); keep the one that captions went through")
                return ((name.removesuffix(embedding), found[0] if found else TEXT),)
    return ()


def without_text_tower(file: Collection[str], needed: Collection[str]) -> str:
    """What a file lacks whose text tower cannot be found."""
    if any(name.endswith(EMBEDDINGS) for name in file) or not all(name.startswith(TEXT) for name in needed):
        return ""
    return f"has no text tower, by which classes are named (no name in it ends with {' or '.join(EMBEDDINGS)})"


def with_momentum(state: dict[str, Any]) -> dict[str, Any]:
    """A first-stage file has no momentum encoder: it begins as a copy of the encoder, as the second stage begins it."""
    if any(name.startswith(_MOMENTUM) for name in state):
        return state
    log.info("no %s* in the file: it begins as a copy of %s*", _MOMENTUM, _ENCODER)
    encoder = {name.removeprefix(_ENCODER): value for name, value in state.items() if name.startswith(_ENCODER)}
    return state | {_MOMENTUM + name: value for name, value in encoder.items()}


def conv_shaped(name: str, tensor: Tensor) -> Tensor:
    """Projection heads' matrices [out, in] as the kernels of width 1 [out, in, 1] that they officially are."""
    is_head = name.startswith(tuple(_HEADS)) and name.endswith((".hidden.weight", ".out.weight"))
    return tensor[..., None] if is_head else tensor


def ovsegmentor_settings(state: Mapping[str, Any]) -> dict[str, int]:
    """tokens, groups, hidden and joint of an official state dict."""
    return {
        "tokens": state[f"{_ENCODER}layers.0.group_token"].shape[-2],
        "groups": len(state[f"{_ENCODER}layers.0.downsample.mlp_inter.fc2.weight"]),
        "hidden": len(state["img_projector.linear_hidden.0.weight"]),
        "joint": len(state["img_projector.linear_out.weight"]),
    }


LAYOUT = Layout(
    title="OVSegmentor",
    mark=_ENCODER,
    names=ovsegmentor_names,
    optional=("num_batches_tracked",),
    unused=(
        f"{_COMPLETION}blocks.0.assign.",
        "logit_scale_mask",
        _MOMENTUM,
        "num_batches_tracked",
        "position_ids",
        "pooler.",
    ),
    complete=with_momentum,
    explain=without_text_tower,
    exported=conv_shaped,
    settings=ovsegmentor_settings,
)
