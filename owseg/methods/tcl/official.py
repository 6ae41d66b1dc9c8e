"""The official TCL checkpoint: its names for our tensors."""

from collections.abc import Collection

from torch import nn

from owseg.published_layout import Layout, Prefixes, renamed

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


LAYOUT = Layout(title="TCL", mark="masker.", names=tcl_names, frozen=("clip.",), optional=("tcl_v_scale", "tcl_f_scale"))
