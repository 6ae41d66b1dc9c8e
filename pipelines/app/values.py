"""How a value is written, in a YAML file and on the command line: what it is, the type of its key decides.

On the command line text is literal: a key of text takes `yes`, `2`, `#x` and `a: b` as they stand. A value is read as YAML only
where it opens like a list or a mapping and the key takes one.
"""

import re
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from pipelines.app.describe import members_of

COMMAND_LINE = "command line"

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_SPOKEN = {"yes": True, "on": True, "no": False, "off": False}
"""What a key that is true or false takes besides; elsewhere these are text."""
_INT = re.compile(r"[-+]?[0-9]{1,4000}|[-+]?[0-9]{1,9}(_[0-9]{1,9}){1,400}")
"""Python refuses numbers of more digits."""
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)")


class ConfigError(ValueError):
    """The user's mistake in a setting: one line that names the file and the key and says what to do."""


class Plain(str):
    """A scalar that stands without quotes, of which the key's type makes what it is."""


@dataclass(frozen=True)
class Given:
    """The value of a setting on the command line, until its key's type is known."""

    key: str
    text: str
    source: str

    def read(self, kind: Any) -> Any:
        """The value for a key of type `kind`: text, Plain, or what its YAML holds. Raises ConfigError for broken YAML."""
        members = members_of(kind)
        lists = [member for member in members if get_origin(member) is tuple]
        mappings = [member for member in members if get_origin(member) is dict or is_dataclass(member)]
        opening = self.text.strip()[:1]
        if (opening == "[" and lists) or (opening == "{" and mappings):
            return read_yaml(self.text, f"{self.source}: '{self.key}={self.text}'", hint=f"; {_QUOTED}", alone=True)
        if str in members:
            return None if self.text == "null" and type(None) in get_args(kind) else self.text
        if lists and self.text.strip() and not is_null(self.text, kind):
            item = get_args(lists[0])[0]
            if not any(get_origin(member) in (tuple, dict) for member in members_of(item)):
                return [Given(self.key, self.text, self.source).read(item)]
        return Plain(self.text.strip()) if self.text.strip() else ""


_QUOTED = "in a list or mapping, text with marks stands in quotes: [\"a, b\", 'c: d']"


def parse_setting(text: str, source: str = COMMAND_LINE) -> tuple[str, Given]:
    """Key and value of "key.sub=value". Raises ConfigError that names `source`."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)*", key):
        raise ConfigError(f"{source}: '{text}' is not a setting; write key=value or section.key=value")
    return key, Given(key, value, source)


def is_null(text: str, kind: Any) -> bool:
    """Whether `text` is the null that a key of type `kind` takes."""
    return type(None) in get_args(kind) and bool(text) and _NULL.fullmatch(text.strip()) is not None


def scalar(kind: Any, text: Plain) -> Any:
    """What `text` is for a key of type `kind`; where it fits none, what YAML would make of it."""
    members = members_of(kind)
    if str in members and not _NULL.fullmatch(text):
        return str(text)
    for member in members:
        if get_origin(member) is Literal:
            for choice in get_args(member):
                read = str(text) if isinstance(choice, str) else _as_yaml(text)
                if read == choice and type(read) is type(choice):
                    return choice
        elif member is bool and text.lower() in _SPOKEN and text in (text.lower(), text.title(), text.upper()):
            return _SPOKEN[text.lower()]
        elif member is float and _FLOAT.fullmatch(text):
            return _float(text)
    return _as_yaml(text)


def _as_yaml(text: str) -> Any:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and re.search(r"[.eE]", text):
        return _float(text)
    return str(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf"))


# ------------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars wait for a type; a key may stand only once."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return "!plain"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key in seen:
                problem = f"duplicate key '{key}'" if isinstance(key_node, yaml.ScalarNode) else "a key must be text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


_Loader.add_constructor("!plain", lambda loader, node: Plain(node.value))
# At once, where PyYAML takes two steps: a list that holds itself is refused.
for _tag, _at_once in (("seq", _Loader.construct_sequence), ("map", _Loader.construct_mapping)):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", partial(_at_once, deep=True))


def read_yaml(text: str, source: str, *, hint: str = "", alone: bool = False) -> Any:
    """What a YAML document holds, its plain scalars as Plain. Raises ConfigError that names `source`.

    `alone`: nothing may follow the value, no comment either.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if alone and (rest := text[node.end_mark.index :].strip()):
            raise ConfigError(f"{source}: '{rest}' after the end of the value{hint}")
        tree = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {_problem(error)}{hint}") from None
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # a date that is none, or lists in lists without end
        raise ConfigError(f"{source[:200]}: {error}{hint}") from None
    return tree


def read_file(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError that names it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; give an existing one with --config FILE") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    tree = read_yaml(text, str(file))
    if tree is None or (isinstance(tree, Plain) and _NULL.fullmatch(tree)):
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: must hold 'key: value' lines, not {show(tree)}")
    return tree


class _Dumper(yaml.SafeDumper):
    """YAML in which any text reads back: PyYAML leaves these marks outside of quotes, where they end a line."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def yaml_of(tree: object) -> str:
    """Nested dicts, lists and scalars as YAML, keys in their order."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return f"not valid YAML ({' '.join(str(error).split())})"


def show(value: object) -> str:
    """A value as it is named in errors."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"the list [{', '.join(map(show, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(_as_yaml(value) if isinstance(value, Plain) else value)
    return text if len(text) <= 100 else f"{text[:80]}...{text[-1]}"
