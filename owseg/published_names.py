"""How official checkpoints call what our methods hold, method by method: all that `owseg.published` must know of each."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from owseg import InputError

Prefixes = tuple[tuple[str, str], ...]
"""Beginnings of names, ours and the official ones, in the order to be tried."""
TEXT = "text_encoder."
"""Where an exported OVSegmentor keeps its text tower; in files that come in, any place will do."""
EMBEDDINGS = ("embeddings.word_embeddings.weight", "token_embedding.weight")
"""By which a text tower is found: how transformers and CLIP call the first of its tensors."""
log = logging.getLogger(__name__)


def unchanged(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict itself."""
    return state


def as_ours(_: str, tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def no_settings(_: Mapping[str, Any]) -> dict[str, int]:
    """None that would be in the file."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One method's official checkpoints. Names are ours unless they are called official."""

    title: str
    """What messages call the method."""
    mark: str
    """Beginning of official names that no other method's have."""
    names: Callable[[nn.Module, Collection[str]], dict[str, str]]
    """The official name of each of a method's tensors that has one. Second argument: the names in a file, none at export."""
    frozen: tuple[str, ...] = ()
    """Beginnings of names of what never learns: in a file or not, never exported."""
    optional: tuple[str, ...] = ()
    """Endings of names of what a file may lack: masks do not depend on it."""
    unused: tuple[str, ...] = ()
    """Parts of official names of what files hold and official code never reads, or we derive."""
    complete: Callable[[dict[str, Any]], dict[str, Any]] = unchanged
    """Fills in what a file may lack because it follows from the rest."""
    exported: Callable[[str, Tensor], Tensor] = as_ours
    """A tensor, by our name, in the shape that official modules want."""
    settings: Callable[[Mapping[str, Any]], dict[str, int]] = no_settings
    """The method's settings that shapes in a file tell. Raises KeyError for an official name that is missing."""


def renamed(name: str, prefixes: Prefixes) -> str | None:
    """A name with its beginning exchanged; None where none of ours fits."""
    return next((official + name.removeprefix(ours) for ours, official in prefixes if name.startswith(ours)), None)


# --------------------------------------------------------------------------------------------------------------- TCL

_GROUNDER = "masker.image_encoder."
_TCL: Prefixes = (
    ("decoder.stages.", f"{_GROUNDER}decoder.decoder.net."),
    ("projection.", f"{_GROUNDER}decoder.image_proj."),
    ("mask_scale", "masker.sim2mask.w"),
    ("mask_shift", "masker.sim2mask.b"),
    ("tcl_v_scale", "tcli_loss.logit_scale"),
    ("tcl_f_scale", "tclf_loss.logit_scale"),
    ("clip.visual.ln_post.", "clip_image_encoder.clip_proj.ln."),
    ("clip.visual.proj", "clip_image_encoder.clip_proj.proj"),
    ("clip.visual.", "clip_image_encoder.clip_visual."),
    ("clip.", "clip_text_encoder."),
)


def tcl_names(method: nn.Module, _: Collection[str]) -> dict[str, str]:
    """Of a `Tcl`; the copied block keeps its index, the last of the tower's."""
    state = method.state_dict()
    blocks = len({name.split(".")[4] for name in state if name.startswith("clip.visual.transformer.resblocks.")})
    block = ("block.", f"{_GROUNDER}backbone.transformer.resblocks.{blocks - 1}.")
    names = {}
    for name in state:
        official = renamed(_tcl_decoder(name), (block, *_TCL))
        if official is not None and name != "clip.logit_scale":  # the official code drops it
            names[name] = official
    return names


def _tcl_decoder(name: str) -> str:
    """The name with a decoder stage's two convolutions called as official ones are; other names unchanged."""
    if not name.startswith("decoder.stages."):
        return name
    *stage, conv, tensor = name.split(".", 4)
    return ".".join([*stage, "conv2" if conv == "1" else "conv", "gate.gate" if tensor == "gate" else tensor])


# ------------------------------------------------------------------------------------------------------- OVSegmentor

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


LAYOUTS = {
    "tcl": Layout(title="TCL", mark="masker.", names=tcl_names, frozen=("clip.",), optional=("tcl_v_scale", "tcl_f_scale")),
    "ovsegmentor": Layout(
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
        exported=conv_shaped,
        settings=ovsegmentor_settings,
    ),
}
"""By the methods' names."""
