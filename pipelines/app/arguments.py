"""argparse as all verbs use it: mistakes are reported in one line, help goes through one place."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipelines.app.config import ConfigError
from pipelines.app.outcome import DONE, exit_code, print_text

called_as = ""
"""What the command `owseg` was called as; empty where a verb was run as a script."""


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
    return exit_code(lambda: work(parser.parse_intermixed_args(argv)), lambda: command_line(argv))


def command_name() -> str:
    """How the user called this verb: `owseg VERB`, or `python FILE`."""
    return called_as or f"python {sys.argv[0]}"


def command_line(argv: Sequence[str]) -> str:
    """What the user would type to call this verb with `argv`."""
    return f"{command_name()} {shlex.join(argv)}".rstrip()
