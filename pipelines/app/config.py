"""Strict, small settings: dataclass defaults, then one YAML file, then `key.sub=value` from the command line; then frozen.

A field may be bool, int, float, str, Literal, `tuple[X, ...]`, `dict[str, X]`, a dataclass, `X | None`, or a union of
dataclasses told apart by a field `name: Literal[...]`. Mappings fill in a dataclass key by key; lists and dicts are replaced
as a whole by the file, and reached into by the command line (`rules.0.min_words=2`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from filtering.files import digest_of
from owseg.fields import flatten as flatten
from pipelines.app.describe import FORMER as FORMER
from pipelines.app.describe import describe, has_default, join, kinds_of, members_of, names_of, one_of, plain, type_name
from pipelines.app.help import unknown_key
from pipelines.app.values import COMMAND_LINE, Given, Plain, parse_setting, read_file, read_yaml, scalar, show
from pipelines.app.values import ConfigError as ConfigError

T = TypeVar("T")
Tree = dict[str, Any]


def load(cls: type[T], file: Path | None, overrides: Sequence[str]) -> T:
    """The settings `cls` from its defaults, then `file`, then `overrides` ("key.sub=value"). Raises ConfigError."""
    tree = _defaults(cls)
    if file is not None:
        tree = _merge(cls, tree, read_file(file))
    return _override(cls, tree, overrides, str(file) if file is not None else COMMAND_LINE if overrides else "defaults")


def override(config: T, overrides: Sequence[str]) -> T:
    """`config` with other values for the keys of `overrides` ("key.sub=value"). Raises ConfigError."""
    return _override(type(config), to_dict(config), overrides, "settings")


def lay_over(config: T, values: Mapping[str, Any], *, source: str) -> T:
    """`config` with the values of dotted keys laid over its own, as a file's are: mappings fill in a section key by key.

    `source` names where the values come from in errors. Raises ConfigError.
    """
    return _lay_over(type(config), to_dict(config), list(values.items()), ("settings", source))


def read_values(config: object, text: str, *, source: str) -> tuple[str, Any]:
    """Key and values of "key=[a, b]" or "key={label: a, ...}", each as `lay_over` takes it. Raises ConfigError."""
    key, given = parse_setting(text, source)
    kind, tree = cast(Any, type(config)), cast(Any, to_dict(config))
    for part in key.split("."):
        classes = [member for member in members_of(kind) if is_dataclass(member)]
        if classes:
            chosen = (_named(classes, tree) if isinstance(tree, dict) else None) or classes[0]
            kind = kinds_of(cast(type, chosen)).get(part)
        else:
            kind = _inner(kind, list if isinstance(tree, list) else dict)
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list):
            tree = tree[int(part)] if part.isdecimal() and int(part) < len(tree) else None
    values = read_yaml(given.text, f"{source}: '{text}'")
    if isinstance(values, dict):
        return key, {label: _merge(kind, None, value) for label, value in values.items()}
    return key, [_merge(kind, None, value) for value in values] if isinstance(values, list) else values


def from_dict(cls: type[T], tree: Mapping[str, Any], *, source: str = "config") -> T:
    """The settings that `to_dict` wrote down; `source` names where they come from in errors."""
    return _build_or_explain(cls, _merge(cls, _defaults(cls), dict(tree)), lambda key: source)


def to_dict(config: object) -> Tree:
    """Nested dicts, lists and scalars: ready for YAML and JSON, and `from_dict` makes an equal object of it."""
    return cast(Tree, plain(config))


def digest(config: object) -> str:
    """SHA-256 of every key and value."""
    return digest_of(to_dict(config))


# ---------------------------------------------------------------------------------------------------------------- merging


def _override(cls: type[T], tree: Tree, overrides: Sequence[str], source: str) -> T:
    """The settings of `tree` with `overrides` laid over them; `source` names where the tree is from in errors."""
    return _lay_over(cls, tree, [parse_setting(text) for text in overrides], (source, COMMAND_LINE))


def _lay_over(cls: type[T], tree: Tree, settings: Sequence[tuple[str, Any]], sources: tuple[str, str]) -> T:
    """The settings of `tree` with others laid over them; `sources` name in errors where the tree and the others are from."""
    for key, value in settings:
        for part in reversed(key.split(".")):
            value = _At({part: value})
        tree = _merge(cls, tree, value)

    def source_of(key: str) -> str:
        return sources[any(f"{key}.".startswith(f"{k}.") or k.startswith(f"{key}.") for k, _ in settings)]

    return _build_or_explain(cls, tree, source_of)


class _At(dict[str, Any]):
    """A mapping that only says where: the steps of a command-line key."""


def _defaults(cls: type) -> Tree:
    """The tree of a dataclass's defaults; fields that have none are left out."""
    tree = {}
    for field in fields(cls):
        if field.default is not MISSING:
            tree[field.name] = plain(field.default)
        elif field.default_factory is not MISSING:
            tree[field.name] = plain(field.default_factory())
    return tree


def _merge(kind: Any, base: Any, new: Any) -> Any:
    """`new` laid over `base`, where `kind` is the type that both shall have. What does not fit is for `_build` to refuse."""
    if isinstance(new, Given):
        new = new.read(kind)
    if isinstance(new, Plain):
        return scalar(kind, new)
    if isinstance(new, list):
        return [_merge(_inner(kind, list), None, item) for item in new]
    if not isinstance(new, dict):
        return new
    members = [member for member in members_of(kind) if is_dataclass(member)]
    if members:
        chosen = _named(members, new) or (_named(members, base) if isinstance(base, dict) else None) or members[0]
        same = isinstance(base, dict) and ("name" not in new or _name(new) == base.get("name"))
        merged = dict(base) if same else {}
        kinds = kinds_of(cast(type, chosen))
        return merged | {key: _merge(kinds.get(key), merged.get(key), value) for key, value in new.items()}
    if isinstance(new, _At) and isinstance(base, list):
        (step, value), *_ = new.items()
        index = int(step) if step.isdecimal() else -1
        if 0 <= index < len(base):
            return [_merge(_inner(kind, list), item, value) if i == index else item for i, item in enumerate(base)]
    kept = base if isinstance(new, _At) and isinstance(base, dict) else {}
    return kept | {key: _merge(_inner(kind, dict), kept.get(key), value) for key, value in new.items()}


def _inner(kind: Any, of: type) -> Any:
    """The type of what a list (`of`=list) or a mapping of type `kind` holds; None where it is neither."""
    origin = tuple if of is list else of
    return next(
        (get_args(member)[-1 if of is dict else 0] for member in members_of(kind) if get_origin(member) is origin), None
    )


# --------------------------------------------------------------------------------------------------------------- checking


class _Wrong(Exception):  # noqa: N818 -- never leaves this file
    def __init__(self, key: str, message: str) -> None:
        self.key, self.message = key, message


def _build_or_explain(cls: type[T], tree: Tree, source_of: Callable[[str], str]) -> T:
    try:
        return cast(T, _build(cls, tree, "", cls))
    except _Wrong as wrong:
        raise ConfigError(f"{source_of(wrong.key)}: {wrong.message}") from None


def _build(kind: Any, value: Any, key: str, root: type) -> Any:
    """`value` as a `kind`, or _Wrong."""
    members = members_of(kind)
    if value is None and type(None) in get_args(kind):
        return None
    classes = [member for member in members if is_dataclass(member)]
    if classes and (isinstance(value, dict) or len(classes) == len(members)):
        return _build_dataclass(classes, value, key, root)
    for member in members:
        if is_dataclass(member):
            continue
        built = _build_value(member, value, key, root)
        if built is not _MISFIT:
            return built
    raise _Wrong(key, f"'{key}' must be {type_name(kind)}, not {show(value)}{_hint(members, value)}")


_MISFIT = object()


def _build_value(kind: Any, value: Any, key: str, root: type) -> Any:
    origin = get_origin(kind)
    if origin is Literal:
        return next((choice for choice in get_args(kind) if type(choice) is type(value) and choice == value), _MISFIT)
    if origin is tuple and isinstance(value, list):
        return tuple(_build(get_args(kind)[0], item, f"{key}.{i}", root) for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _build(get_args(kind)[1], item, f"{key}.{name}", root) for name, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if origin is not None or type(value) is not kind:
        return _MISFIT
    if isinstance(value, float) and not math.isfinite(value):
        raise _Wrong(key, f"'{key}' must be a finite number, not {value}")
    if isinstance(value, str) and "\0" in value:
        raise _Wrong(key, f"'{key}' holds the character NUL, which no name and no path may have")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise _Wrong(key, f"'{key}' holds bytes that are no text: {value!a}; rename it, or try again with PYTHONUTF8=1")
    return value


def _build_dataclass(classes: list[Any], value: Any, key: str, root: type) -> Any:
    if not isinstance(value, dict):
        raise _Wrong(key, f"'{key}' must hold keys ({', '.join(kinds_of(classes[0]))}), not {show(value)}")
    cls = _named(classes, value)
    if cls is None:
        given = f"not {show(value['name'])}" if "name" in value else "which is missing"
        raise _Wrong(join(key, "name"), f"'{join(key, 'name')}' must be {one_of(names_of(classes))}, {given}")
    kinds = kinds_of(cls)
    arguments = {}
    for name, item in value.items():
        if name not in kinds:
            raise _Wrong(join(key, name), unknown_key(name, key, kinds, describe(root)))
        arguments[name] = _build(kinds[name], item, join(key, name), root)
    for field in fields(cls):
        if field.name not in value and not has_default(field):
            name = join(key, field.name)
            raise _Wrong(name, f"'{name}' has no default: set it to {type_name(kinds[field.name])}")
    try:
        return cls(**arguments)
    except ValueError as error:  # from __post_init__; the message begins with the field's name
        message = " ".join(str(error).split())
        raise _Wrong(join(key, message.split(" ", 1)[0].strip("':,")), join(key, message)) from None


def _hint(members: Sequence[Any], value: Any) -> str:
    if str in members and (value is None or isinstance(value, (bool, int, float))):
        return f"; in quotes it is text: '{'null' if value is None else value}'"
    return ""


def _named(classes: list[Any], value: Mapping[str, Any]) -> Any:
    """The dataclass that `value["name"]` picks; None where it picks none. A single class needs no name."""
    if len(classes) == 1:
        return classes[0]
    return next((cls for cls in classes if _name(value) in get_args(kinds_of(cls).get("name"))), None)


def _name(value: Mapping[str, Any]) -> Any:
    name = value.get("name")
    return name.text if isinstance(name, Given) else name
