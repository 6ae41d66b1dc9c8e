"""The score table at the width of the terminal."""

import io

import pytest
from rich.console import Console

from pipelines.app.tables import print_table
from pipelines.evaluate import print_scores

SETS = ("voc21", "voc20", "context60", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k")
METHODS = ("maskclip", "tcl", "ovsegmentor")


def printed(width: int, head: list[str], rows: list[list[str]], words: int = 1) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_table(console, head, rows, words=words)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 60, 40])
def test_what_is_too_wide_comes_in_blocks_that_lose_nothing(width: int) -> None:
    head = ["method", *SETS, "average"]
    rows = [[name, *(f"{len(name)}.{number}" for number in range(len(SETS))), "17.5 ± 1.2"] for name in METHODS]
    lines = printed(width, head, rows)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for cell in (*head[1:], *(cell for row in rows for cell in row[1:-1])):
        assert text.count(f" {cell} ") == 1
    blocks = text.count("method")
    assert blocks > 1
    assert [text.count(f" {name} ") for name in METHODS] == [blocks] * 3


def test_what_fits_is_one_table() -> None:
    head = ["setting", "method", "average"]
    assert sum("method" in line for line in printed(80, head, [["a", "tcl", "1.0"]], words=2)) == 1
    wide = printed(200, ["method", *SETS], [["tcl", *["10.0"] * len(SETS)]])
    assert sum("method" in line for line in wide) == 1


def test_the_scores_of_eight_sets_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    for name, value in (("COLUMNS", "80"), ("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    metrics = dict.fromkeys(("fwIoU", "pixel_accuracy", "boundary_IoU", "seconds_per_image", "peak_memory_mb"), 1.0)
    result = {
        "protocol": "tcl protocol",
        "mIoU": {name: dict.fromkeys((*SETS, "average"), 12.5) for name in METHODS},
        "intervals": {},
        "averages": dict.fromkeys(METHODS, metrics),
        "settings": dict.fromkeys(METHODS, "templates tcl, pamr off, background probability 0.5, and a word or two more"),
        "differences": {},
        "skipped": {},
        "images": {},
    }
    print_scores(result, SETS)
    lines = terminal.getvalue().splitlines()
    tables = [line for line in lines if line.startswith(("┃", "│", "|", "+", "┏"))]
    assert max(map(len, tables)) <= 80
    assert all(any(name in line for line in tables) for name in SETS)
    assert "tcl: templates tcl, pamr off, background probability 0.5, and a word or two more" in lines


def test_a_long_word_is_folded_and_keeps_its_end() -> None:
    link = f"https://example.org/{'a' * 90}/photo_0123.jpg"
    lines = printed(60, ["link", "images"], [[link, "1"]])
    assert max(map(len, lines)) <= 60
    assert "".join(line.split("│")[1].strip() for line in lines if "│" in line) == f"{link}"
