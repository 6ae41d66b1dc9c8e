"""The released maps: their names for our tensors, of today's files and of older ones."""

from collections.abc import Collection
from typing import Any

from torch import nn

from owseg import InputError
from owseg.published_layout import Layout

NAMES = {
    "projection.first.weight": "linear_layer.weight",
    "projection.first.bias": "linear_layer.bias",
    "projection.second.weight": "hidden_layers.0.weight",
    "projection.second.bias": "hidden_layers.0.bias",
}
OLDER = "linear_layer2."
"""How older files call `hidden_layers.0.`."""


def talk2dino_names(method: nn.Module, file: Collection[str]) -> dict[str, str]:
    """Of a `Talk2Dino`; towers are not in the files. Raises InputError for the file of a deeper map."""
    del method
    if further := sorted(name for name in file if name.startswith("hidden_layers.") and name not in NAMES.values()):
        raise InputError(
            f"has {further[0]}: a map of more layers is another model; give one of linear_layer and hidden_layers.0"
        )
    return NAMES


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict under today's names."""
    return {name.replace(OLDER, "hidden_layers.0."): value for name, value in state.items()}


LAYOUT = Layout(title="Talk2DINO", mark="linear_layer.", names=talk2dino_names, key="", complete=renamed)
