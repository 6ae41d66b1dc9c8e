"""Tensors out of the files in which weights travel, without running anything that a file may hold."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owseg import InputError


def read_weights(path: Path) -> dict[str, Any]:
    """The state dict in a .safetensors file, in what torch.save wrote, or in a TorchScript archive (OpenAI's own CLIP files).

    Where it lies under the key "state_dict", or every name begins with "module." (training checkpoints), both are taken off.
    Raises InputError where the file is damaged or needs code to be run.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        elif _is_torchscript(path):
            found = _read_torchscript(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every format has errors of its own, and foreign bytes can raise any of them
        raise InputError(
            f"{path}: damaged, or more than tensors (nothing in it was run); give a .safetensors file or a saved state dict"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path}: holds no state dict; give a .safetensors file or a state dict saved by torch.save")
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def differences(state: dict[str, Any], expected: dict[str, Tensor]) -> str:
    """How the names and shapes of a state dict differ from the expected ones, in words; empty where they do not."""
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
    wrong += [f"{name} is left over" for name in sorted(state.keys() - expected.keys())]
    for name in sorted(expected.keys() & state.keys()):
        found, wanted = getattr(state[name], "shape", None), expected[name].shape
        if found != wanted:
            told = "no tensor" if found is None else f"{list(found)} and not {list(wanted)}"
            wrong.append(f"{name} is {told}")
    return f"{wrong[0]} ({len(wrong)} differences)" if len(wrong) > 1 else "".join(wrong)


def not_finite(state: Mapping[str, Any]) -> str:
    """Which tensors of a state dict hold numbers that are not finite, in words; empty where all are."""
    floats = {name: x for name, x in state.items() if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())}
    wrong = [name for name, tensor in floats.items() if not tensor.isfinite().all()]
    return f"{wrong[0]} is not finite" + (f" ({len(wrong)} tensors are not)" if len(wrong) > 1 else "") if wrong else ""


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Any]:
    """Tensors of the module tree in a TorchScript archive, by dotted name. Its code is never looked at."""
    with zipfile.ZipFile(path) as archive:
        data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(data) as file:
            return _tensors(_ModuleTree(file, archive, data.removesuffix(".pkl")).load(), "")


class _Module:
    """What stands in for a scripted module: its attributes, and nothing that could be called."""


class _ModuleTree(pickle.Unpickler):
    """Reads a TorchScript module as plain attributes; a name outside `_KNOWN` is refused, so nothing foreign runs."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")
        return _KNOWN[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        return torch.frombuffer(bytearray(self._archive.read(f"{self._folder}/{key}")), dtype=dtype)


def _strided(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


_KNOWN: dict[str, Any] = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.BoolStorage": torch.bool,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch.jit._pickle.build_intlist": list,
    "collections.OrderedDict": OrderedDict,
}


def _tensors(module: _Module, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, _Module):
            found |= _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and name != "attn_mask":  # the causal mask is no weight: the model makes its own
            found[prefix + name] = value
    return found
