"""What else there is to know of a method's settings, said on the field itself."""

from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from owseg import InputError

T = TypeVar("T")
FILE_SUFFIXES = frozenset((".json", ".safetensors", ".pt", ".pth", ".bin", ".ckpt"))
FORMER_VALUES = "former_values"
"""Under this key a field's metadata maps old names of its values to those of today."""


def setting(
    default: T,
    *,
    training_only: bool = False,
    local_path: bool = False,
    shown: bool = False,
    scores_only: bool = False,
    how: bool = False,
) -> T:
    """A dataclass field with this default.

    training_only: it has no say in what trained weights predict. local_path: it may name a file or folder of this machine.
    scores_only: it decides on the masks of given weights, and has no say in training. how: it has a say in memory and time, and
    in no result. None of these: in training and in what weights predict. shown: it is shown beside the row's scores.
    """
    facts = {"training_only": training_only, "local_path": local_path, "shown": shown}
    found: Any = field(default=default, metadata={**facts, "scores_only": scores_only, "how": how})
    return found  # type: ignore[no-any-return]  # type checkers take a field for its default


def training_only_settings(config: Any) -> frozenset[str]:
    """Names of a method's settings that have no say in what trained weights predict."""
    return _names(config, "training_only")


def scores_only_settings(config: Any) -> frozenset[str]:
    """Names of a method's settings that have no say in its training."""
    return _names(config, "scores_only")


def how_settings(config: Any) -> frozenset[str]:
    """Names of a method's settings that have a say in no result."""
    return _names(config, "how")


def training_settings(config: Any) -> dict[str, Any]:
    """A method's settings that have a say in its trained weights, as nested dicts; of files and folders only the names."""
    left_out = scores_only_settings(config) | how_settings(config)
    found = {name: value for name, value in asdict(config).items() if name not in left_out}
    return found | {name: file_name(found[name]) for name in path_settings(config) if name in found}


def file_name(value: str) -> str:
    """The name of a local file or folder, which stays the same where it is moved; what names none, such as a tag, as it is."""
    path = Path(value)
    return path.name if path.is_absolute() or path.suffix in FILE_SUFFIXES or value.startswith((".", "~")) else value


def flatten(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of nested mappings; lists are values."""
    if isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from flatten(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


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
