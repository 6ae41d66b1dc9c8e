"""Checkpoints of official repositories: read by their names into a method, and written from one.

Such a file is accepted wherever trained weights of the method are, too. TCL's and OVSegmentor's state dicts lie under the key
"model", Talk2DINO's files are one. TCL's holds what learns, frozen CLIP may be in it or not; OVSegmentor's holds everything,
after its first stage no momentum encoder; Talk2DINO's holds its map alone.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from owseg import InputError
from owseg.fit import WEIGHTS, learned_state, load_learned
from owseg.methods import TRAINABLE
from owseg.phases import Phase
from owseg.published_layout import Layout
from owseg.trainable import TrainableMethod
from owseg.weights import differences, not_finite

LAYOUTS: dict[str, Layout] = {
    name: layout for name, config in TRAINABLE.items() if (layout := config.official_layout) is not None
}
"""Layouts of the published checkpoints, by method."""
SUFFIXES = (".pth", ".pt")
"""What tells an official checkpoint from one of this project's."""
log = logging.getLogger(__name__)


class Differences(NamedTuple):
    """How an official state dict differs from what a method holds, in official names."""

    missing: list[str]
    """Learned tensors that the file lacks; they keep what the method began with."""
    left_over: list[str]
    """Tensors of the file that the method has no place for, but for those that the official code itself never reads."""


class _Inert:
    """Stands in for whatever a file pickles besides tensors (the official one: its config), so that none of it is run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def recognise(state: Mapping[str, Any], source: str | Path) -> tuple[str, dict[str, Any]]:
    """Whose official checkpoint a state dict is, and the settings that its shapes tell.

    Raises InputError, naming `source`, for one that is of no method here.
    """
    for method, layout in LAYOUTS.items():
        if any(name.startswith(layout.mark) for name in state):
            try:
                return method, layout.settings(state)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise InputError(f"{source}: no official {layout.title} checkpoint, or not all of one ({error})") from error
    known = " or ".join(f"{layout.title} ({layout.mark}*)" for layout in LAYOUTS.values())
    raise InputError(f"{source}: no official checkpoint of {known}")


def layout_of(method: nn.Module) -> Layout:
    """The official layout of a method's published checkpoints. Raises InputError where none were published."""
    config = getattr(method, "config", None)
    name = getattr(config, "name", type(method).__name__)
    if name not in LAYOUTS:
        raise InputError(f"no published checkpoints of {name} are known; give a folder that the train stage wrote")
    return LAYOUTS[name]


def official_names(method: nn.Module, file: Collection[str] = ()) -> dict[str, str]:
    """The official name of each of a method's tensors, by our name; `file`: the names in the file that is to be read."""
    return layout_of(method).names(method, file)


def import_official(method: nn.Module, state: dict[str, Any], source: str | Path) -> Differences:
    """Fill a method from an official state dict, with what is frozen where it is there.

    Axes of length 1 do not count in shapes. Raises InputError, naming `source`, where tensors that decide masks are missing
    or a shape is another.
    """
    layout, own = layout_of(method), method.state_dict()
    try:
        names = layout.names(method, state.keys())
    except InputError as mistake:
        raise InputError(f"{source}: {mistake}") from mistake
    state = layout.complete(state)
    missing = [name for name, official in names.items() if official not in state and not name.startswith(layout.frozen)]
    used = set(names.values())
    left_over = sorted(name for name in state.keys() - used if not any(part in name for part in layout.unused))
    if needed := [names[name] for name in missing if not name.endswith(layout.optional)]:
        raise InputError(f"{source}: {_what_it_is(layout, state, needed, left_over)}")
    found = {}
    for name, official in names.items():
        if official in state:
            tensor, wanted = state[official], own[name].shape
            shape = list(tensor.shape) if _is_plain(tensor) else None
            if shape is None or _counted(shape) != _counted(wanted):
                raise InputError(
                    f"{source}: belongs to another architecture ({official} has shape {shape}, "
                    f"this {layout.title} asks for {list(layout.exported(name, own[name]).shape)}); "
                    "give the towers that it was trained with"
                )
            found[name] = tensor.reshape(wanted)
    method.load_state_dict(found, strict=False)
    return Differences([names[name] for name in missing], left_over)


def _is_plain(value: Any) -> bool:
    """Whether a value in a file is a tensor of real numbers, neither sparse nor quantised."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_complex())


def _counted(shape: Sequence[int]) -> list[int]:
    """A shape without its axes of length 1."""
    return [size for size in shape if size != 1]


def _what_it_is(layout: Layout, state: dict[str, Any], needed: list[str], left_over: list[str]) -> str:
    """What is wrong with a file that lacks needed tensors, in words."""
    for other in LAYOUTS.values():
        if other is not layout and any(name.startswith(other.mark) for name in state):
            return f"an official checkpoint of {other.title}, not of {layout.title} ({needed[0]} is missing)"
    if words := layout.explain(state.keys(), needed):
        return words
    there = f"; it has {left_over[0]}" if left_over else ""
    return f"no official {layout.title} checkpoint of this architecture ({needed[0]} is missing{there})"


def export_official(method: nn.Module) -> dict[str, Any]:
    """A method as an official checkpoint: {official name: tensor} of what learns, under a key where files have one."""
    layout, state = layout_of(method), method.state_dict()
    exported = {
        official: layout.exported(name, state[name]).detach().cpu().clone()
        for name, official in layout.names(method, ()).items()
        if not name.startswith(layout.frozen)
    }
    return {layout.key: exported} if layout.key else exported


def read_official(path: Path) -> dict[str, Any]:
    """The state dict in an official checkpoint. Nothing in the file is run: what is no tensor comes out empty.

    Raises InputError where the file is missing, damaged, foreign or dangerous.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files raise errors of many kinds
        resave = f"torch.save({{'model': torch.load({path.name!r}, weights_only=False)['model']}}, 'model.pth')"
        raise InputError(
            f"{path}: cannot be read without running what is in it, or is damaged ({type(error).__name__}); "
            f"if you trust it, re-save it where it was made: {resave}"
        ) from error
    bare = tuple(layout.mark for layout in LAYOUTS.values() if not layout.key)
    state = found.get("model") if isinstance(found, dict) else None
    if state is None and isinstance(found, dict) and any(str(name).startswith(bare) for name in found):
        state = found
    if isinstance(state, dict) and any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in state.values()):
        raise InputError(f"{path}: its tensors have shapes alone and no values; save it where the weights are")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f'{path}: holds no state dict under the key "model", as official checkpoints do')
    return state


def load_start(method: TrainableMethod, phases: Sequence[Phase], path: Path) -> None:
    """Fill a method with weights that its training begins with: an official checkpoint, or this project's of any phases.

    What the file lacks stays as the method began, and is logged. Raises InputError where the file holds something else,
    nothing that a phase trains, or what no phase trains and differs here: checkpoints do not hold that, so that what is
    trained on it would be scored on something else.
    """
    path = path / WEIGHTS if path.is_dir() else path
    learned = learned_state(method, phases).keys()
    frozen = {name: tensor.clone() for name, tensor in method.state_dict().items() if name not in learned}
    if path.suffix in SUFFIXES:
        _log_differences(path, import_official(method, read_official(path), path))
    else:
        _load_some(method, learned, path)
    if wrong := not_finite(method.state_dict()):
        raise InputError(f"{path}: {wrong}; give a checkpoint from before its numbers were lost")
    for name, tensor in method.state_dict().items():
        if name in frozen and not torch.allclose(tensor, frozen[name], atol=1e-6):
            raise InputError(
                f"{path}: {name} is another than here, and no phase trains it; give the encoder that belongs to these weights, "
                "or train it, too"
            )


def _load_some(method: TrainableMethod, learned: Collection[str], path: Path) -> None:
    try:
        found = load_file(path)
    except Exception as error:  # safetensors raises its own untyped errors for truncated and foreign files
        raise InputError(f"{path}: not a readable checkpoint ({error})") from error
    own = method.state_dict()
    if wrong := differences(found, {name: tensor for name, tensor in own.items() if name in found}):
        raise InputError(f"{path}: belongs to another architecture ({wrong})")
    if not found.keys() & learned:
        raise InputError(f"{path}: holds no weights that are trained here")
    method.load_state_dict(found, strict=False)
    log.info("%s: %d of %d tensors", path, len(found), len(own))


def load_trained(method: TrainableMethod, phases: Sequence[Phase], path: Path) -> None:
    """Fill a method with trained weights: this project's, or official ones (.pth, .pt), whose differences are logged.

    Raises InputError where they do not fit, or hold numbers that are not finite: what they score would be a table of nothing.
    """
    if path.suffix in SUFFIXES:
        _log_differences(path, import_official(method, read_official(path), path))
    else:
        load_learned(method, phases, path)
    if wrong := not_finite(method.state_dict()):
        raise InputError(f"{path}: {wrong}; give a checkpoint from before its numbers were lost")


def _log_differences(path: Path, found: Differences) -> None:
    for kind, names in zip(("missing", "left over"), found, strict=True):
        log.log(logging.WARNING if names else logging.INFO, "%s: %s: %s", path, kind, ", ".join(names) or "nothing")
