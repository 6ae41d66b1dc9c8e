"""Checkpoints of the official TCL repository, `tcl.pth`: read by its names into a method, and written from one.

    python -m owseg.published import tcl.pth FOLDER       a trained folder as this project writes them
    python -m owseg.published export FOLDER tcl.pth       and back

Such a file is accepted wherever trained TCL weights are, too. Its state dict lies under the key "model" and holds what learns;
frozen CLIP may be in it or not.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from owseg import InputError
from owseg.engine import Phase
from owseg.fit import WEIGHTS, learned_state, load_learned

SUFFIXES = (".pth", ".pt")
"""What tells an official checkpoint from one of this project's."""
OPTIONAL = ("tcl_v_scale", "tcl_f_scale")
"""Training's temperatures, which an official file may lack: masks do not depend on them."""
_GROUNDER = "masker.image_encoder."
_PREFIXES = (
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
log = logging.getLogger(__name__)


class Differences(NamedTuple):
    """How an official state dict differs from what a method holds, in official names."""

    missing: list[str]
    """Learned tensors that the file lacks; they keep what the method began with."""
    left_over: list[str]
    """Tensors of the file that the method has no place for."""


class _Inert:
    """Stands in for whatever a file pickles besides tensors (the official one: its config), so that none of it is run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def official_name(name: str, blocks: int) -> str:
    """The official name of a tensor of `TclMethod`; the copied block keeps its index, the last of the tower's `blocks`."""
    if name.startswith("block."):
        return f"{_GROUNDER}backbone.transformer.resblocks.{blocks - 1}.{name.removeprefix('block.')}"
    ours, official = next(pair for pair in _PREFIXES if name.startswith(pair[0]))
    rest = name.removeprefix(ours)
    if ours == "decoder.stages.":
        stage, conv, tensor = rest.split(".", 2)
        rest = f"{stage}.{'conv2' if conv == '1' else 'conv'}.{'gate.gate' if tensor == 'gate' else tensor}"
    return official + rest


def official_names(method: nn.Module) -> dict[str, str]:
    """The official name of each of a TCL method's tensors, by our name."""
    state = method.state_dict()
    blocks = len({name.split(".")[4] for name in state if name.startswith("clip.visual.transformer.resblocks.")})
    return {name: official_name(name, blocks) for name in state if name != "clip.logit_scale"}  # the official code drops it


def import_official(method: nn.Module, state: dict[str, Any], source: str | Path) -> Differences:
    """Fill a TCL method from an official state dict, frozen CLIP included where it is there.

    Raises InputError, naming `source`, where tensors that decide masks are missing or a shape is another.
    """
    names, own = official_names(method), method.state_dict()
    learned = {name: official for name, official in names.items() if not name.startswith("clip.")}
    missing = [official for official in learned.values() if official not in state]
    needed = [official for name, official in learned.items() if official not in state and name not in OPTIONAL]
    left_over = sorted(state.keys() - set(names.values()))
    if needed:
        there = f"; it has {left_over[0]}" if left_over else ""
        raise InputError(f"{source}: no official TCL checkpoint of this encoder's architecture ({needed[0]} is missing{there})")
    found = {name: state[official] for name, official in names.items() if official in state}
    for name, tensor in found.items():
        shape = list(tensor.shape) if isinstance(tensor, Tensor) else None
        if shape != list(own[name].shape):
            raise InputError(
                f"{source}: belongs to another architecture ({names[name]} has shape {shape}, "
                f"the encoder asks for {list(own[name].shape)})"
            )
    method.load_state_dict(found, strict=False)
    return Differences(missing, left_over)


def export_official(method: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What learns in a TCL method, as an official checkpoint: {"model": {official name: tensor}}."""
    state = method.state_dict()
    return {
        "model": {
            official: state[name].detach().cpu().clone()
            for name, official in official_names(method).items()
            if not name.startswith("clip.")
        }
    }


def read_official(path: Path) -> dict[str, Any]:
    """The state dict under "model" in an official checkpoint. Nothing in the file is run: what is no tensor comes out empty.

    Raises InputError where the file is missing, damaged, foreign or dangerous.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files raise errors of many kinds
        resave = "torch.save({'model': torch.load('tcl.pth', weights_only=False)['model']}, 'model.pth')"
        raise InputError(
            f"{path}: cannot be read without running what is in it, or is damaged ({type(error).__name__}); "
            f"if you trust it, re-save it where it was made: {resave}"
        ) from error
    state = found.get("model") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f'{path}: holds no state dict under the key "model", as official TCL checkpoints do')
    return state


def load_trained(method: nn.Module, phases: Sequence[Phase], path: Path) -> None:
    """Fill a method with trained weights: this project's, or official TCL's (.pth, .pt), whose differences are logged."""
    if path.suffix not in SUFFIXES:
        load_learned(method, phases, path)
        return
    differences = import_official(method, read_official(path), path)
    for kind, names in zip(("missing", "left over"), differences, strict=True):
        log.log(logging.WARNING if names else logging.INFO, "%s: %s: %s", path, kind, ", ".join(names) or "nothing")


def main() -> None:
    """The command line at the top of this file."""
    from owseg.checkpoint import find_checkpoint, write_model
    from owseg.encoders import build_encoder
    from owseg.methods.tcl import Tcl

    parser = argparse.ArgumentParser(prog="python -m owseg.published", description="Official TCL checkpoints in and out.")
    parser.add_argument("verb", choices=("import", "export"))
    parser.add_argument("source", help="tcl.pth to import, or the trained folder to export")
    parser.add_argument("target", type=Path, help="the folder or the file to write")
    parser.add_argument("--encoder-model", default="", help="import: the CLIP under it, as encoder.model (default: ViT-B-16)")
    parser.add_argument("--encoder-weights", default="", help="the CLIP's weights, as encoder.pretrained (default: openai)")
    given = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = find_checkpoint(given.source, encoder_model=given.encoder_model, encoder_weights=given.encoder_weights)
    if not isinstance(found.method, Tcl) or found.weights is None:
        raise InputError(f"{given.source}: no trained TCL")
    method = found.method.build(build_encoder(found.encoder))  # frozen weights are in neither, so none are loaded
    load_trained(method, found.method.phases, found.weights)
    if given.verb == "export":
        given.target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(export_official(method), given.target)
        return
    given.target.mkdir(parents=True, exist_ok=True)
    weights = given.target / WEIGHTS
    save_file(learned_state(method, found.method.phases), weights)
    write_model(replace(found, weights=weights))


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
