"""What AdamW knows of each parameter, whatever engine holds it and however many ranks share it: the optimiser's checkpoint."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from owseg import InputError

FILES = "optimizer.*.safetensors"
"""The files of a checkpoint that hold it: each rank writes its share of the parameters, and any number of ranks reads them."""
_MEAN, _SQUARE, _STEPS = "exp_avg/", "exp_avg_sq/", "steps"


class Moments(NamedTuple):
    """AdamW's state of a parameter."""

    steps: int
    """Steps that it was updated in."""
    mean: Tensor
    """Running mean of its gradient, in its shape."""
    square: Tensor
    """Running mean of its gradient's square, in its shape."""


AdamState = Mapping[str, Moments]
"""By the parameter's name; those that were never updated have none."""


def write_share(state: Iterable[tuple[str, Moments]], folder: Path, rank: int, ranks: int) -> None:
    """Write a rank's share of the state. Every rank calls it, as going through `state` may take all of them."""
    mine = {name: moments for number, (name, moments) in enumerate(state) if number % ranks == rank}
    tensors = {_MEAN + name: moments.mean for name, moments in mine.items()}
    tensors |= {_SQUARE + name: moments.square for name, moments in mine.items()}
    steps = json.dumps({name: moments.steps for name, moments in mine.items()})
    path = folder / FILES.replace("*", str(rank))
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {_STEPS: steps})


class SavedMoments(AdamState):
    """The state in a checkpoint's folder; a parameter's is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the checkpoint has no such files, or they cannot be read."""
        self._files: dict[str, tuple[Path, int]] = {}
        files = sorted(folder.glob(FILES))
        if not files:
            raise InputError(
                f"{folder}: a checkpoint of an earlier version, whose optimiser's state this one does not read; finish the "
                "training with that version, or begin it anew in another folder"
            )
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    steps = json.loads(opened.metadata()[_STEPS])
            except Exception as error:  # safetensors raises its own untyped errors for truncated and foreign files
                raise InputError(f"{file}: not a readable part of a checkpoint ({error})") from error
            self._files |= {name: (file, int(number)) for name, number in steps.items()}

    def __getitem__(self, name: str) -> Moments:
        file, steps = self._files[name]
        with safe_open(file, "pt") as opened:
            return Moments(steps, opened.get_tensor(_MEAN + name), opened.get_tensor(_SQUARE + name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def torch_state(moments: Moments, device: torch.device) -> dict[str, Tensor]:
    """The state as torch's AdamW keeps it for a tensor of its own; a fused one wants the steps on the GPU, too."""
    mean, square = (x.to(device, copy=True) for x in (moments.mean, moments.square))
    return {"step": torch.tensor(float(moments.steps), device=device), "exp_avg": mean, "exp_avg_sq": square}
