"""Strict, small settings: dataclass defaults, then one YAML file, then `key.sub=value` from the command line; then frozen.

A field may be bool, int, float, str, Literal, `tuple[X, ...]`, `dict[str, X]`, a dataclass, `X | None`, or a union of
dataclasses told apart by a field `name: Literal[...]`. Mappings fill in a dataclass key by key; lists and dicts are replaced
as a whole by the file, and reached into by the command line (`rules.0.min_words=2`).
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import yaml

from filtering.files import digest_of
from pipelines.app.describe import describe, has_default, join, kinds_of, members_of, names_of, one_of, plain, type_name

COMMAND_LINE = "command line"
FORMER = "former"
"""Under this key a field's metadata holds the name that it had in an older version."""
T = TypeVar("T")
Tree = dict[str, Any]


class ConfigError(ValueError):
    """The user's mistake in a setting: one line that names the file and the key and says what to do."""


def load(cls: type[T], file: Path | None, overrides: Sequence[str]) -> T:
    """The settings `cls` from its defaults, then `file`, then `overrides` ("key.sub=value"). Raises ConfigError."""
    tree = _defaults(cls)
    if file is not None:
        tree = _merge(cls, tree, _read(file))
    return _override(cls, tree, overrides, str(file) if file is not None else COMMAND_LINE if overrides else "defaults")


def override(config: T, overrides: Sequence[str]) -> T:
    """`config` with other values for the keys of `overrides` ("key.sub=value"). Raises ConfigError."""
    return _override(type(config), to_dict(config), overrides, "settings")


def lay_over(config: T, values: Mapping[str, Any], *, source: str) -> T:
    """`config` with the values of dotted keys laid over its own, as a file's are: mappings fill in a section key by key.

    `source` names where the values come from in errors. Raises ConfigError.
    """
    return _lay_over(type(config), to_dict(config), list(values.items()), ("settings", source))


def from_dict(cls: type[T], tree: Mapping[str, Any], *, source: str = "config") -> T:
    """The settings that `to_dict` wrote down; `source` names where they come from in errors."""
    return _build_or_explain(cls, _merge(cls, _defaults(cls), dict(tree)), lambda key: source)


def to_dict(config: object) -> Tree:
    """Nested dicts, lists and scalars: ready for YAML and JSON, and `from_dict` makes an equal object of it."""
    return cast(Tree, plain(config))


def digest(config: object) -> str:
    """SHA-256 of every key and value."""
    return digest_of(to_dict(config))


def flatten(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of a tree; lists are values."""
    if isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from flatten(value, join(key, str(name)))
    else:
        yield key, tree


# ---------------------------------------------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML with the plain rules of version 1.2: `1e-3` is a number, `on` and `1:30` are text; a key may stand only once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 -- PyYAML's own attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key in seen:
                problem = f"duplicate key '{key}'" if isinstance(key_node, yaml.ScalarNode) else "a key must be text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))


def _read(file: Path) -> Tree:
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; give an existing one with --config FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {_yaml_problem(error)}") from None
    except ValueError as error:  # as on the command line
        raise ConfigError(f"{file}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: must hold 'key: value' lines, not {_show(tree)}")
    return tree


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


def parse_setting(text: str, source: str = COMMAND_LINE) -> tuple[str, Any]:
    """Key and value of "key.sub=value", the value read as YAML. Raises ConfigError that names `source`."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)*", key):
        raise ConfigError(f"{source}: '{text}' is not a setting; write key=value or section.key=value")
    try:
        return key, yaml.load(value, _Loader) if value.strip() else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: '{text}': {_yaml_problem(error)}; quote text as {key}='\"...\"'") from None
    except ValueError as error:  # a number of thousands of digits, a date that is none
        raise ConfigError(f"{source}: '{text[:80]}': {error}; quote text as {key}='\"...\"'") from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return f"not valid YAML ({' '.join(str(error).split())})"


# ---------------------------------------------------------------------------------------------------------------- merging


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
    if not isinstance(new, dict):
        return new
    members = [member for member in members_of(kind) if is_dataclass(member)]
    if members:
        chosen = _named(members, new) or (_named(members, base) if isinstance(base, dict) else None) or members[0]
        same = isinstance(base, dict) and ("name" not in new or new["name"] == base.get("name"))
        merged = dict(base) if same else {}
        kinds = kinds_of(cast(type, chosen))
        return merged | {key: _merge(kinds.get(key), merged.get(key), value) for key, value in new.items()}
    inner = (get_args(members_of(kind)[0]) or (None,))[-1 if get_origin(members_of(kind)[0]) is dict else 0]
    if isinstance(new, _At) and isinstance(base, dict):
        return base | {key: _merge(inner, base.get(key), value) for key, value in new.items()}
    if isinstance(new, _At) and isinstance(base, list):
        (step, value), *_ = new.items()
        index = int(step) if step.isdecimal() else -1
        if 0 <= index < len(base):
            return [_merge(inner, item, value) if i == index else item for i, item in enumerate(base)]
    return dict(new) if isinstance(new, _At) else new


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
    raise _Wrong(key, f"'{key}' must be {type_name(kind)}, not {_show(value)}{_hint(members, value)}")


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
    return value


def _build_dataclass(classes: list[Any], value: Any, key: str, root: type) -> Any:
    if not isinstance(value, dict):
        raise _Wrong(key, f"'{key}' must hold keys ({', '.join(kinds_of(classes[0]))}), not {_show(value)}")
    cls = _named(classes, value)
    if cls is None:
        given = f"not {_show(value['name'])}" if "name" in value else "which is missing"
        raise _Wrong(join(key, "name"), f"'{join(key, 'name')}' must be {one_of(names_of(classes))}, {given}")
    kinds = kinds_of(cls)
    arguments = {}
    for name, item in value.items():
        if name not in kinds:
            raise _Wrong(join(key, name), f"unknown key '{join(key, name)}'; {_where_instead(name, key, cls, root)}")
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


def _where_instead(name: str, key: str, cls: type, root: type) -> str:
    siblings = kinds_of(cls)
    for field in fields(cls):
        if field.metadata.get(FORMER) == name:
            return f"it is called '{join(key, field.name)}' now"
    near = difflib.get_close_matches(name, siblings, n=1)
    if near:
        return f"did you mean '{join(key, near[0])}'?"
    elsewhere = [entry.key for entry in describe(root) if entry.key.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    return f"the keys here are {', '.join(siblings)}"


def _hint(members: Sequence[Any], value: Any) -> str:
    if str in members and isinstance(value, (bool, int, float)):
        return f"; in quotes it is text: \"'{value}'\""
    return ""


def _named(classes: list[Any], value: Mapping[str, Any]) -> Any:
    """The dataclass that `value["name"]` picks; None where it picks none. A single class needs no name."""
    if len(classes) == 1:
        return classes[0]
    return next((cls for cls in classes if value.get("name") in get_args(kinds_of(cls).get("name"))), None)


def _show(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"the list {value}"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
