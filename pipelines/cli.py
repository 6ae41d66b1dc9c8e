"""The command line of all verbs: `[--config FILE] [key.sub=value ...]`, exit codes, and help from the settings themselves."""

import importlib
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cluster import InputError as ClusterInputError
from filtering.stage import InputError as FilteringInputError
from miniature import InputError as MiniatureInputError
from owseg import InputError as SegmentationInputError
from pipelines.config import ConfigError, load
from pipelines.describe import Entry, describe
from pipelines.run_dir import open_run_dir
from pipelines.settings import Config

DONE, FAILED, USER_MISTAKE, INTERRUPTED = 0, 1, 2, 130

MISTAKES = (ConfigError, FilteringInputError, SegmentationInputError, ClusterInputError, MiniatureInputError)

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


def main(run: Callable[[Config], None], *, doc: str, argv: Sequence[str] | None = None) -> int:
    """Run a verb with the settings that `argv` asks for and return its exit code. `doc` says what the verb does."""
    # A script's own folder comes first on the path, where `filter` or `evaluate` would hide a library of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    try:
        file, overrides, wants_help = _parse(sys.argv[1:] if argv is None else argv)
        if wants_help:
            print(help_text(doc, width=shutil.get_terminal_size().columns))
            return DONE
        with open_run_dir(load(Config, file, overrides), file) as config:
            run(config)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = user_mistake(error)
        if message is None:
            traceback.print_exc()
            return FAILED
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return USER_MISTAKE
    finally:
        if "ray" in sys.modules:
            importlib.import_module("cluster.session").close_session()
    return DONE


def user_mistake(error: BaseException | None) -> str | None:
    """The message of the user's mistake that `error` is or was caused by, also inside Ray's wrappers; None for other errors."""
    if error is None:
        return None
    inside = getattr(
        error, "cause", None
    )  # Ray's error of a task: it also is an instance of what it wraps, with a longer message
    if isinstance(inside, BaseException) and (message := user_mistake(inside)):
        return message
    if isinstance(error, MISTAKES):
        return str(error)
    workers = getattr(error, "worker_failures", None)  # Ray Train's error: one exception per rank
    causes = [error.__cause__, *(workers.values() if isinstance(workers, dict) else ())]
    return next((message for cause in causes if (message := user_mistake(cause))), None)


def _parse(argv: Sequence[str]) -> tuple[Path, list[str], bool]:
    """The config file, the overrides, and whether help is asked for."""
    file, overrides = DEFAULT_CONFIG, []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("-h", "--help"):
            return file, [], True
        if argument == "--config" or argument.startswith("--config="):
            value = argument.partition("=")[2] or next(arguments, "")
            if not value:
                raise ConfigError("--config needs a file: --config FILE")
            file = Path(value)
        elif argument.startswith("-"):
            raise ConfigError(f"unknown option '{argument}'; the options are --config FILE and --help, settings are key=value")
        else:
            overrides.append(argument)
    return file, overrides, False


def help_text(doc: str, *, width: int) -> str:
    """What the verb does, how to call it, and every key with its default and meaning."""
    width = max(width, 60)
    usage = f"usage: python {sys.argv[0]} [--config FILE] [key=value ...]"
    paragraphs = [textwrap.fill(" ".join(p.split()), width) for p in doc.strip().split("\n\n")]
    lines = [*"\n\n".join(paragraphs).splitlines(), "", usage, ""]
    default = f"values in YAML; without it: configs/{DEFAULT_CONFIG.name}, the miniature world on this machine"
    lines += textwrap.wrap(f"  --config FILE  {default}", width, subsequent_indent=" " * 17)
    lines.append("  --help         this text")
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
