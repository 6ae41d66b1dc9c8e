"""What else there is to know of a method's settings, said on the field itself."""

from dataclasses import Field, field, fields, is_dataclass
from typing import Any, TypeVar

from owseg import InputError

T = TypeVar("T")
FORMER_VALUES = "former_values"
"""Under this key a field's metadata maps old names of its values to those of today."""


def setting(default: T, *, training_only: bool = False, local_path: bool = False, shown: bool = False) -> T:
    """A dataclass field with this default.

    training_only: it has no say in what trained weights predict. local_path: it may name a file or folder of this machine.
    shown: it decides on the masks of given weights, and is shown beside the row's scores.
    """
    found: Any = field(default=default, metadata={"training_only": training_only, "local_path": local_path, "shown": shown})
    return found  # type: ignore[no-any-return]  # type checkers take a field for its default


def training_only_settings(config: Any) -> frozenset[str]:
    """Names of a method's settings that have no say in what trained weights predict."""
    return _names(config, "training_only")


def path_settings(config: Any) -> frozenset[str]:
    """Names of a method's settings that may name a file or a folder."""
    return _names(config, "local_path")


def shown_settings(config: Any) -> tuple[str, ...]:
    """Names of a method's settings that are shown beside its scores, in the order of its fields."""
    return tuple(one.name for one in fields(config) if one.metadata.get("shown"))


def check_range(settings: Any, *names: str, least: float, most: float | None = None) -> None:
    """Raise InputError for a setting that lies outside; null is none of these."""
    for name in names:
        value = getattr(settings, name)
        if value is None:
            continue
        if most is not None and not least <= value <= most:
            raise InputError(f"{name}: {value} is outside {least:g}..{most:g}")
        if value < least:
            raise InputError(f"{name}: {value} must be at least {least:g}")


def former_values(kind: Any) -> dict[str, dict[str, str]]:
    """By field of a dataclass, what its values were called when older checkpoints were written, and are called now."""
    return {one.name: one.metadata[FORMER_VALUES] for one in fields(kind) if FORMER_VALUES in one.metadata}


def _names(config: Any, fact: str) -> frozenset[str]:
    """Names of the fields of which a fact is said, where a class or one that it extends declares them."""
    classes = [cls for cls in type(config).__mro__ if is_dataclass(cls)]
    every: list[Field[Any]] = [one for cls in classes for one in fields(cls)]
    return frozenset(one.name for one in every if one.metadata.get(fact))
