"""The command line of all verbs: `[--config FILE] [key.sub=value ...]`, exit codes, and help from the settings themselves."""

import importlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.config import ConfigError, load
from pipelines.describe import Entry, describe
from pipelines.outcome import exit_code, print_text
from pipelines.run_dir import open_run_dir, run_folder
from pipelines.settings import Config

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"

Action = Callable[[Config], None]


def main(run: Action, *, doc: str, argv: Sequence[str] | None = None, flags: Mapping[str, Action] | None = None) -> int:
    """Run a verb with the settings that `argv` asks for and return its exit code. `doc` says what the verb does.

    `flags` are options of this verb alone: what each does instead of `run`, without holding the run's folder; its docstring
    is its help.
    """
    flags = flags or {}

    def work() -> None:
        file, overrides, option = _parse(sys.argv[1:] if argv is None else argv, flags)
        if option == "--help":
            print_text(help_text(doc, flags, width=shutil.get_terminal_size().columns))
            return
        config = load(Config, file, overrides)
        if option:
            flags[option](replace(config, run_dir=str(run_folder(config, file))))
            return
        with open_run_dir(config, file) as held:
            run(held)

    try:
        return exit_code(work)
    finally:
        if "ray" in sys.modules:
            importlib.import_module("cluster.session").close_session()


def _parse(argv: Sequence[str], flags: Mapping[str, Action]) -> tuple[Path, list[str], str]:
    """The config file, the overrides, and "--help" or the flag that is given, if any."""
    file, overrides, given = DEFAULT_CONFIG, [], ""
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("-h", "--help"):
            return file, [], "--help"
        if argument in flags:
            given = argument
        elif argument == "--config" or argument.startswith("--config="):
            value = argument.partition("=")[2] or next(arguments, "")
            if not value:
                raise ConfigError("--config needs a file: --config FILE")
            file = Path(value)
        elif argument.startswith("-"):
            options = ", ".join(["--config FILE", *flags])
            raise ConfigError(f"unknown option '{argument}'; the options are {options} and --help, settings are key=value")
        else:
            overrides.append(argument)
    return file, overrides, given


def help_text(doc: str, flags: Mapping[str, Action] | None = None, *, width: int) -> str:
    """What the verb does, how to call it, and every key with its default and meaning."""
    width = max(width, 60)
    flags = flags or {}
    usage = " ".join([f"usage: python {sys.argv[0]}", *(f"[{flag}]" for flag in flags), "[--config FILE] [key=value ...]"])
    paragraphs = [textwrap.fill(" ".join(p.split()), width) for p in doc.strip().split("\n\n")]
    lines = [*"\n\n".join(paragraphs).splitlines(), "", usage, ""]
    options = {flag: action.__doc__ or "" for flag, action in flags.items()} | {
        "--config FILE": f"values in YAML; without it: configs/{DEFAULT_CONFIG.name}, the miniature world on this machine",
        "--help": "this text",
    }
    for option, meaning in options.items():
        lines += textwrap.wrap(f"  {option:<13}  {meaning}", width, subsequent_indent=" " * 17)
    return "\n".join([*lines, *_settings_help(describe(Config), width)])


def _settings_help(entries: Sequence[Entry], width: int) -> Iterator[str]:
    """A table per section; the keys that belong to none come first."""
    widths = (min(max(len(entry.key) for entry in entries), width // 3), min(16, width // 6))
    roots = {entry.key.split(".")[0] for entry in entries if "." in entry.key}
    yield ""
    for entry in sorted(entries, key=lambda entry: entry.key.split(".")[0].split("(")[0] in roots):
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
