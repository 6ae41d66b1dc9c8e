"""How published checkpoints name what a method holds: what `owseg.published` must know of a method."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Prefixes = tuple[tuple[str, str], ...]
"""Beginnings of names, ours and the official ones, in the order to be tried."""


def unchanged(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict itself."""
    return state


def as_ours(_: str, tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def no_settings(_: Mapping[str, Any]) -> dict[str, int]:
    """None that would be in the file."""
    return {}


def no_words(_: Collection[str], __: Collection[str]) -> str:
    """Nothing."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One method's official checkpoints. Names are ours unless they are called official."""

    title: str
    """What messages call the method."""
    mark: str
    """Beginning of official names that no other method's have."""
    names: Callable[[nn.Module, Collection[str]], dict[str, str]]
    """The official name of each of a method's tensors that has one. Second argument: the names in a file, none at export."""
    key: str = "model"
    """Under which key a file has the state dict; empty: the file is the state dict."""
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
    explain: Callable[[Collection[str], Collection[str]], str] = no_words
    """Why a file lacks what is needed, where the method knows: names in the file and those it lacks in, words out."""
    settings: Callable[[Mapping[str, Any]], dict[str, int]] = no_settings
    """The method's settings that shapes in a file tell. Raises KeyError for an official name that is missing."""


def renamed(name: str, prefixes: Prefixes) -> str | None:
    """A name with its beginning exchanged; None where none of ours fits."""
    return next((official + name.removeprefix(ours) for ours, official in prefixes if name.startswith(ours)), None)
