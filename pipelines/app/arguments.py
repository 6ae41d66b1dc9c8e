"""argparse as all verbs use it: mistakes are reported in one line, help goes through one place."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipelines.app.config import ConfigError
from pipelines.app.help import command_name as command_name
from pipelines.app.outcome import DONE, Scene, exit_code, print_text


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations whose errors are ConfigErrors."""

    def __init__(self, *, usage: str | None, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=usage, description=description, formatter_class=formatter, allow_abbrev=False, add_help=False)
        self.add_argument("-h", "--help", action="store_true", help="this text")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def run_parsed(parser: Parser, argv: Sequence[str], work: Callable[[argparse.Namespace], None]) -> int:
    """Do the work of a command line, or print its help; returns the exit code."""
    if {"-h", "--help"} & set(argv):
        print_text(parser.format_help())
        return DONE
    scene = Scene(given=[text.rpartition("=")[2] for text in argv], again=lambda: command_line(argv))
    return exit_code(lambda: work(parser.parse_intermixed_args(argv)), scene)


def command_line(argv: Sequence[str]) -> str:
    """What the user would type to call this verb with `argv`."""
    return f"{command_name()} {shlex.join(argv)}".rstrip()
