"""What a settings dataclass offers: its types in a person's words, and every key with its default and meaning."""

import ast
import inspect
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

FORMER = "former"
"""Under this key a field's metadata holds the name that it had in an older version."""


@cache
def kinds_of(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def members_of(kind: Any) -> list[Any]:
    """The alternatives of a union, without None; any other type is its own only one."""
    if get_origin(kind) in (Union, types.UnionType):
        return [member for member in get_args(kind) if member is not type(None)]
    return [kind]


def names_of(classes: Sequence[Any]) -> list[Any]:
    return [name for cls in classes for name in get_args(kinds_of(cls).get("name"))]


def has_default(field: "Field[Any]") -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def one_of(choices: Sequence[object]) -> str:
    shown = [str(choice) for choice in choices]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def type_name(kind: Any) -> str:
    """A type in the words of a person who writes YAML."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if kind in words:
        return words[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return one_of(arguments)
    if get_origin(kind) is tuple:
        return f"a list ({type_name(arguments[0])})"
    if get_origin(kind) is dict:
        return f"a mapping (of {type_name(arguments[1])})"
    if is_dataclass(kind):
        return " or ".join(str(name) for name in names_of([kind])) or "a section"
    return " or ".join(type_name(member) for member in arguments)


@dataclass(frozen=True)
class Entry:
    """One line of --help: the dotted key, its type in words, its default as YAML ("" where none), and what it means."""

    key: str
    type: str
    default: str
    meaning: str
    former: str = ""
    """The name of its last part in an older version."""


def describe(cls: type, prefix: str = "", default: object = MISSING) -> list[Entry]:
    """Every key of `cls`, sections first. Alternatives read `key(name)`, list items `key.0`, entries of a dict `key.<name>`."""
    entries = []
    meanings = docstrings(cls)
    for field in fields(cls):
        key, kind = join(prefix, field.name), kinds_of(cls)[field.name]
        value = getattr(default, field.name) if default is not MISSING else _default_of(field)
        if get_origin(kind) is Literal and len(get_args(kind)) == 1:
            continue  # the name of an alternative, which stands in its key already
        entries.append(
            Entry(key, type_name(kind), _yaml_of(value), meanings.get(field.name, ""), field.metadata.get(FORMER, ""))
        )
        entries += _describe_inside(kind, key, value)
    return entries


def _describe_inside(kind: Any, key: str, value: object) -> list[Entry]:
    members = members_of(kind)
    entries = []
    for member in members:
        if is_dataclass(member):
            names = names_of([member])  # a section that is no alternative by name has none: `OwnDataset` beside a text
            inner = f"{key}({one_of(names)})" if names and len(members) > 1 else key
            entries += describe(cast(type, member), inner, value if isinstance(value, cast(type, member)) else MISSING)
        elif get_origin(member) is tuple:
            entries += _describe_inside(get_args(member)[0], f"{key}.0", MISSING)
        elif get_origin(member) is dict:
            entries += _describe_inside(get_args(member)[1], f"{key}.<name>", MISSING)
    return entries


def _default_of(field: "Field[Any]") -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _yaml_of(value: object) -> str:
    if value is MISSING:
        return ""
    if is_dataclass(value):
        return str(getattr(value, "name", ""))
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


@cache
def docstrings(cls: type) -> Mapping[str, str]:
    """What each field means: the string that follows it in the source, on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for statement, following in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match following:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[statement.target.id] = " ".join(text.split())
    return found


def plain(value: object) -> object:
    """A settings value as nested dicts, lists and scalars."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value
