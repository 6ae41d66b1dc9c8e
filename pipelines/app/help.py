"""What a verb and its settings are, in words: --help as a whole or of a section, and what a mistyped key may have meant."""

import difflib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.app.describe import Entry

EVERYTHING = "all"
HELP = "--help"
NARROWEST = 60


called_as = ""
"""What the command `owseg` was called as; empty where a verb was run as a script."""


def command_name() -> str:
    """How the user called this verb: `owseg VERB`, or `python FILE`."""
    return called_as or f"python {sys.argv[0]}"


@dataclass(frozen=True)
class Reference:
    """All that --help tells: what the verb does, its options with their meanings, and the settings."""

    doc: str
    options: Mapping[str, str]
    entries: Sequence[Entry]

    @property
    def sections(self) -> list[str]:
        """The keys that hold others, such as train and method_settings.tcl.optim."""
        plain = [_plain(entry.key) for entry in self.entries]
        return list(dict.fromkeys(key for key in plain if any(other.startswith(f"{key}.") for other in plain)))


def help_text(reference: Reference, topic: str, *, width: int) -> str:
    """The help on a topic: "" is the verb and the sections in a line each, a section's or setting's key it alone, or "all".

    Raises ValueError, one line, where there is no such topic.
    """
    width = max(width, NARROWEST)
    if topic and topic != EVERYTHING:
        chosen = [entry for entry in reference.entries if f"{_plain(entry.key)}.".startswith(f"{topic}.")]
        if not chosen:
            keys = [_plain(entry.key) for entry in reference.entries]
            ending = [key for key in keys if key.endswith(f".{topic.rpartition('.')[2]}")]
            near = sorted(ending, key=lambda key: key.count("."))[:1] or difflib.get_close_matches(topic, keys, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes a section or a key, or {EVERYTHING}"
            raise ValueError(f"--help: unknown section '{topic}'; {hint}")
        return "\n".join(_settings(chosen, reference.entries, width)).lstrip("\n")
    paragraphs = [textwrap.fill(" ".join(p.split()), width) for p in reference.doc.strip().split("\n\n")]
    called = " ".join([command_name(), *(f"[{option}]" for option in reference.options if option != HELP), "[key=value ...]"])
    lines = [*"\n\n".join(paragraphs).splitlines(), "", f"usage: {called}", ""]
    for option, meaning in reference.options.items():
        lines += textwrap.wrap(f"  {option:<13}  {meaning}", width, subsequent_indent=" " * 17)
    lines += _settings(reference.entries, reference.entries, width) if topic else _overview(reference, width)
    return "\n".join(lines)


def unknown_key(name: str, section: str, siblings: Iterable[str], entries: Sequence[Entry]) -> str:
    """The message on a key that no setting has, in a section ("" is the top) that holds `siblings`, and what to write."""
    key = f"{section}.{name}" if section else name
    return f"unknown key '{key}'; {_instead(name, section, list(siblings), entries)}"


def _instead(name: str, section: str, siblings: list[str], entries: Sequence[Entry]) -> str:
    def full(sibling: str) -> str:
        return f"{section}.{sibling}" if section else sibling

    for entry in entries:
        if entry.former == name and _plain(entry.key).rpartition(".")[0] == section:
            return f"it is called '{_plain(entry.key)}' now"
    if near := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean '{full(near[0])}'?"
    elsewhere = [entry.key for entry in entries if entry.key.rsplit(".", 1)[-1] == name and _stands_alone(entry.key)]
    return f"did you mean '{elsewhere[0]}'?" if elsewhere else f"the keys here are {', '.join(siblings)}"


def mistyped(reference: Reference, keys: Iterable[str]) -> str:
    """The message on the first of `keys` that no setting has; "" where each may be one.

    What only the settings themselves can tell, such as which key an alternative has, is not asked here.
    """
    tree: dict[str, dict[str, object]] = {}
    for entry in reference.entries:
        section, _, name = entry.key.rpartition(".")
        tree.setdefault(section, {})[name.partition("(")[0]] = None
    for key in keys:
        section = ""
        for name in key.split("."):
            siblings = tree.get(section)
            if siblings is None or any(one.isdecimal() or one.startswith("<") for one in siblings):
                break
            if name not in siblings:
                return unknown_key(name, section, siblings, reference.entries)
            section = f"{section}.{name}" if section else name
    return ""


def _plain(key: str) -> str:
    """A key as it is set: `filter.rules.0.min_words` for the entry `filter.rules.0(too_short).min_words`."""
    return ".".join(part.partition("(")[0] for part in key.split("."))


def _stands_alone(key: str) -> bool:
    """Whether a key of --help may be set as it is written: not one of an alternative, a list's item or a mapping's entry."""
    return "(" not in key and not any(part.isdecimal() or part.startswith("<") for part in key.split("."))


def _overview(reference: Reference, width: int) -> Iterator[str]:
    """The settings of no section, and a line for each section."""
    roots = [key for key in reference.sections if "." not in key]
    alone = [entry for entry in reference.entries if "." not in entry.key and entry.key not in roots]
    yield from _settings(alone, alone, width)
    yield ""
    yield f"sections (--help train tells its keys, --help {EVERYTHING} those of all):"
    column = max(map(len, roots))
    for entry in reference.entries:
        if entry.key in roots:
            yield f"  {entry.key:<{column}}  {textwrap.shorten(entry.meaning, width - column - 4, placeholder=' ...')}"


def _settings(chosen: Sequence[Entry], entries: Sequence[Entry], width: int) -> Iterator[str]:
    """A table per section; the keys that belong to none come first. Columns are those of all `entries`."""
    widths = (min(max(len(entry.key) for entry in entries), width // 3), min(16, width // 6))
    roots = {entry.key.split(".")[0] for entry in entries if "." in entry.key}
    yield ""
    for entry in sorted(chosen, key=lambda entry: entry.key.split(".")[0].split("(")[0] in roots):
        if entry.key in roots:
            yield ""
            yield from textwrap.wrap(f"{entry.key}: {entry.meaning}", width)
        else:
            choices = f" [{entry.type}]" if " or " in entry.type and entry.type != "true or false" else ""
            default = textwrap.shorten(entry.default, width - widths[0] - 4, placeholder=" ...")
            yield from _columns((entry.key, default, entry.meaning + choices), widths, width)


def _columns(cells: tuple[str, str, str], widths: tuple[int, int], width: int) -> Iterator[str]:
    """A row of the table: a cell too wide for its column pushes what follows to the next line."""
    line = "  "
    start = 2
    for cell, column in zip(cells[:2], widths, strict=True):
        line = f"{line:<{start}}{cell}"
        start += column + 2
        if len(line) > start - 2:
            yield line
            line = ""
    wrapped = textwrap.wrap(cells[2], max(width - start, 20)) or [""]
    yield f"{line:<{start}}{wrapped[0]}".rstrip()
    yield from (" " * start + rest for rest in wrapped[1:])
