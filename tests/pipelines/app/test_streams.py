"""Whatever the encoding of the output, and whoever reads it no longer: no message is an error, and no work is lost by one."""

import ast
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cluster.progress import Progress
from helpers.chain import environment
from helpers.paths import REPO
from pipelines.app.outcome import DONE, FAILED, READER_GONE, USER_MISTAKE, Scene, exit_code
from pipelines.app.streams import make_safe
from pipelines.evaluate import print_scores
from pipelines.full import print_funnel

RESULT = {
    "protocol": "tcl → ±",
    "mIoU": {"tcl": {"voc21": 1.0, "average": 1.0}},
    "intervals": {"tcl": {"average": [0.5, 1.5]}},
    "averages": {"tcl": {"fwIoU": 1.0}},
    "settings": {"tcl": "pamr off"},
    "differences": {},
    "skipped": {"voc21": ["bad…é"]},
    "images": {"voc21": 3},
}


class Stream(io.TextIOWrapper):
    """A standard stream with an encoding of its own."""

    def __init__(self, encoding: str, *, terminal: bool = False) -> None:
        self.bytes, self.terminal = io.BytesIO(), terminal
        super().__init__(self.bytes, encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_our_messages_tables_and_bars_fit_any_encoding(
    encoding: str, terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        print_funnel({"links": 3, "kept": 2}, {"captions": 2, "links": 2, "success": 1})
        print_scores(RESULT, ["voc21"])
        print("caf\u00e9 \u65e5\u672c \udcff.jpg")
        with Progress("train", total=2, unit="steps") as progress:
            progress.say("warning: → 日本")
            progress.update(2, note="loss 1.2 → ×")
        raise RuntimeError("\u65e5 →")

    out, err = Stream(encoding, terminal=terminal), Stream(encoding, terminal=terminal)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert exit_code(work, Scene(tmp_path)) == FAILED
    shown, told = out.bytes.getvalue().decode(encoding), err.bytes.getvalue().decode(encoding)
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", told)
    arrow = "→" if encoding == "utf-8" else "->"
    assert f"corpus funnel: 3 links {arrow} 2 kept {arrow} 1 downloaded" in shown
    assert "tcl" in shown
    assert "\\udcff.jpg" in shown, "a file's name of bytes that are no text"
    assert "2/2 steps" in told
    assert f"error: RuntimeError: {'日' if encoding == 'utf-8' else chr(92) + 'u65e5'} {arrow} (a fault of this program" in told


def test_a_shell_without_any_encoding(tmp_path: Path) -> None:
    """As `LC_ALL=C` with Python's own remedies switched off."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipelines.app.outcome import exit_code\n"
        "from pipelines.app.stage_marker import *\n"
        "def work():\n"
        "    print('a \\u2192 b \\xb1 \\xe9')\n"
        "    marker = StageMarker(fingerprint='f', digest='\\xe9', seconds=0, result={'file': sys.argv[1]})\n"
        "    write_marker(Path('.'), 'filter', marker)\n"
        "    assert read_marker(Path('.'), 'filter', 'f') == marker\n"
        "sys.exit(exit_code(work))"
    )
    given = environment() | {"PYTHONPATH": str(REPO), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for more in ({}, {"PYTHONIOENCODING": "ascii"}):
        command = [sys.executable, "-c", code, "日\udcff.jpg".encode("utf-8", "surrogateescape")]
        done = subprocess.run(command, env=given | more, cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (DONE, b"")
        assert done.stdout.splitlines()[0] == b"a -> b +- \\xe9"


def cut(reading: Callable[[int], None], streams: tuple[int, ...]) -> tuple[int, bytes]:
    """The exit code and standard error of a program that prints for ever into a pipe."""
    code = (
        "import sys; from pipelines.app.outcome import exit_code\n"
        "def work():\n"
        "    for n in range(10**7): print('line', n)\n"
        "    raise RuntimeError('its reader went, and it went on')\n"
        "sys.exit(exit_code(work))"
    )
    reader, writer = os.pipe()
    both = writer if 2 in streams else subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment() | {"PYTHONPATH": str(REPO)}, stdout=writer, stderr=both
    )
    os.close(writer)
    reading(reader)
    os.close(reader)
    err = process.communicate()[1] or b""
    return process.returncode, err


@pytest.mark.parametrize("streams", [(1,), (1, 2)], ids=["| head", "2>&1 | head"])
def test_a_reader_that_goes_ends_the_work_without_a_word(streams: tuple[int, ...]) -> None:
    assert cut(lambda reader: os.read(reader, 100) and None, streams) == (READER_GONE, b"")


def test_an_output_on_a_full_disk_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert exit_code(lambda: print("a line"), Scene()) == USER_MISTAKE
        monkeypatch.undo()
    assert capsys.readouterr().err == (
        "error: the output cannot be written (No space left on device); send it elsewhere and run again\n"
    )


def test_closed_streams_swallow_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    make_safe()
    print("nobody reads this")
    Console().print("nor this")
    assert exit_code(lambda: print("→"), Scene()) == DONE


def text_files_without_encoding(tree: ast.AST) -> Iterator[int]:
    """Lines where a text file is opened in the locale's encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
        )
        modes = [
            arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in ("r", "w", "a", "x", "rt", "wt")
        ]
        if name in ("read_text", "write_text") and not (name == "write_text" and not isinstance(node.func, ast.Attribute)):
            yield node.lineno
        archive = (
            isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "tarfile"
        )
        if (name == "open" and modes and not archive) or name == "FileHandler":
            yield node.lineno


def test_every_text_file_is_utf_8_whatever_the_locale_says() -> None:
    found = [
        f"{path.relative_to(REPO)}:{line}"
        for folder in ("cluster", "filtering", "miniature", "owseg", "pipelines", "storage", "tools")
        for path in (REPO / folder).rglob("*.py")
        for line in text_files_without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
    assert list(text_files_without_encoding(ast.parse("p.read_text()\nopen(p, 'w')\np.open('rb')\np.write_text('é')"))) == [
        1,
        2,
        4,
    ]
