"""The recipes of docs/extending.md, as tests follow them in a copy of the packages."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.chain import DEADLINE, environment
from helpers.paths import REPO

PAGE = REPO / "docs" / "extending.md"


def recipe(opening: str) -> list[str]:
    """The blocks of Python under a paragraph that opens so."""
    (section,) = re.findall(rf"^\*\*{opening}\*\*.*?(?=^\*\*|\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


def command(verb: str, word: str) -> list[str]:
    """The settings of the page's only command that runs `verb` and has `word` in it."""
    (line,) = re.findall(rf"^python pipelines/{verb}\.py (.*{word}.*)$", PAGE.read_text(), flags=re.MULTILINE)
    return shlex.split(line)


def run(copy: Path, *argv: str) -> str:
    """What Python prints in the copy, with its packages."""
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=copy,
        env=environment() | {"PYTHONPATH": str(copy), "COLUMNS": "200"},
        text=True,
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def copied(folder: Path, package: str) -> Path:
    """A folder with a copy of one package, for a recipe to change, beside the others as they are."""
    shutil.copytree(REPO / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in {"cluster", "configs", "filtering", "miniature", "owseg", "pipelines", "storage"} - {package}:
        (folder / name).symlink_to(REPO / name)
    return folder
