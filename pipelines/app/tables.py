"""Tables for the terminal that fit its width, and none that loses a letter of a name."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

BORDERS = 3
"""What a column takes beside its cells: a space before and after them, and a line."""


def console_for(least: int) -> Console:
    """The terminal as wide as it is; output that goes elsewhere has `least` columns, if not more."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, least))


def print_table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
    """A table whose first `words` columns hold words, and whose others hold numbers.

    Where it is wider than the console it comes in blocks of columns, each of which begins with the words.
    """
    for columns in _blocks(head, rows, words, console.width):
        table = Table()
        for column in columns:
            table.add_column(head[column], justify="left" if column < words else "right", overflow="fold")
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        console.print(table)


def _blocks(head: Sequence[str], rows: Sequence[Sequence[str]], words: int, width: int) -> list[list[int]]:
    """The columns of each block: as many as fit, and one at least."""
    widths = [max(len(line[column]) for line in (head, *rows)) + BORDERS for column in range(len(head))]
    first = list(range(words))
    room = width - 1 - sum(widths[:words])
    blocks: list[list[int]] = [[]]
    for column in range(words, len(head)):
        if blocks[-1] and sum(widths[other] for other in (*blocks[-1], column)) > room:
            blocks.append([])
        blocks[-1].append(column)
    return [[*first, *block] for block in blocks]
