"""Every command of README and docs is understood by today's code, and those that can be are run as they are printed."""

import contextlib
import io
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest

from helpers.documented import KINDS, PAGES, SHELL, Block, blocks_in, blocks_of, check_command, commands_of, shell_blocks
from helpers.paths import REPO
from miniature.world import WorldConfig, scene_of
from pipelines.app.config import ConfigError
from pipelines.app.console import MODULES, VERBS
from pipelines.app.describe import describe
from pipelines.app.settings import Config

STAND_INS = {"make demo": "python pipelines/full.py --config configs/smoke.yaml run_dir=runs/demo"}
"""What is run in the place of a command that takes a quarter of an hour: the same chain in minutes, into the same folder."""
FOUND = [page for page in PAGES if page.exists()]
NAMES = [page.stem for page in FOUND]
FILES = (".json", ".jsonl", ".md", ".py", ".txt", ".yaml")
ACTIVATE = "source .venv/bin/activate"
CLUSTERS = [REPO / "ray_cluster.yaml", *sorted((REPO / "deploy").glob("*.yaml"))]
INLINE = re.compile(r"`((?:python (?:pipelines|benchmarks|tools)/|owseg [a-z]|make [a-z])[^`]*)`")
"""Commands in running text and tables."""


@cache
def help_of(verb: str) -> str:
    """What a verb's --help prints, read in this process, which has imported most of it."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", [f"pipelines/{verb}.py", "--help"])
        runpy.run_path(str(REPO / "pipelines" / f"{verb}.py"), run_name="__main__")
    return printed.getvalue()


def environment(folder: Path) -> dict[str, str]:
    """A reader's: no environment is active, no cluster is there, and the packages are those of `folder`."""
    paths = [path for path in os.environ["PATH"].split(os.pathsep) if Path(path) != Path(sys.prefix) / "bin"]
    here = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "VIRTUAL_ENV"))}
    return {**here, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(folder), "COLUMNS": "100"}


@pytest.mark.parametrize("page", FOUND, ids=NAMES)
def test_blocks_say_what_they_are(page: Path) -> None:
    """A language for each block, so that no command hides, and for each block of commands what becomes of it here."""
    commands = "\n".join(block.script for block in blocks_of(page) if block.kind in ("slow", "server"))
    assert not commands or ACTIVATE in commands, f"{page.name}: its reader is in a shell without the environment: {ACTIVATE}"
    for block in blocks_of(page):
        assert block.language, f"{block.place}: a block without a language; commands are ```sh, what is printed ```text"
        if block.language in SHELL:
            assert block.kind in KINDS, (
                f"{block.place}: say above it <!-- test: {'|'.join(KINDS)} --> (tests/helpers/documented.py)"
            )


@pytest.mark.parametrize("page", FOUND, ids=NAMES)
def test_commands_are_understood(page: Path, tmp_path: Path) -> None:
    """Scripts, targets and verbs exist, verbs have the options, settings are valid, config files are there."""
    given = written(page, tmp_path)
    for block in blocks_of(page):
        if block.kind == "by":
            assert (REPO / block.why).is_file(), f"{block.place}: no test {block.why}"
        elif block.language in SHELL:
            for words in commands_of(block.script):
                check(block.place, words, given)
    for command in INLINE.findall(page.read_text(encoding="utf-8")):
        words = command.split()
        check(page.name, [word for word in words[:2] if word.islower()], given)


@pytest.mark.parametrize("file", [*sorted((REPO / "configs").glob("*.yaml")), *CLUSTERS], ids=lambda file: file.name)
def test_commands_at_the_head_of_a_file_are_understood(file: Path) -> None:
    """A config file says how it is run, a cluster's file how a job is submitted to it."""
    comment = re.match(r"(#.*\n)*", file.read_text(encoding="utf-8"))
    assert comment
    text = re.sub(r"^#(?: Run:)?", "", comment[0], flags=re.MULTILINE)
    for found in re.finditer(r"^ *(?=python pipelines/|owseg |ray job submit )", text, re.MULTILINE):
        check(file.name, next(commands_of(text[found.end() :])), {})


def check(place: str, words: list[str], given: dict[str, str]) -> None:
    try:
        check_command(words, help_of, given)
    except (AssertionError, ConfigError) as error:
        raise AssertionError(f"{place}: {' '.join(words)}: {error}") from None


def written(page: Path, folder: Path) -> dict[str, str]:
    """The files that a page gives the content of, by name, written into a folder."""
    files = {block.file: folder / block.file for block in blocks_of(page) if block.file}
    for block in blocks_of(page):
        if block.file:
            files[block.file].write_text(block.text, encoding="utf-8")
    return {name: str(file) for name, file in files.items()}


def test_the_readme_has_every_verb() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert not [verb for verb in VERBS if f"| `pipelines/{MODULES.get(verb, verb)}.py`" not in readme]


HISTORY = ("decisions",)
"""Pages that tell of settings as they were."""


@pytest.mark.parametrize("page", [page for page in FOUND if page.stem not in HISTORY], ids=lambda page: page.stem)
def test_settings_in_the_text_are_settings(page: Path) -> None:
    """`filter.top_k`, `train.workers=2`: every dotted name of a section is a key of it, or a section."""
    sections = {field.name for field in fields(Config) if is_dataclass(field.default)}
    for found in re.finditer(r"`([a-z_]+)(\.[a-z_0-9.]+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
        name = found[1] + found[2]
        if found[1] in sections and not name.endswith(FILES):
            chosen = name.removesuffix(".name")  # of alternatives, which are told apart by it
            assert chosen in keys(), f"{page.name}: no setting {name}"


@cache
def keys() -> set[str]:
    """Every dotted key, and every section; alternatives without the names of those that have them."""
    names = {re.sub(r"\([^)]*\)", "", entry.key) for entry in describe(Config)}
    return {".".join(name.split(".")[:length]) for name in names for length in range(1, name.count(".") + 2)}


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        ("python pipelines/filter.py filter.topk=5", "topk"),
        ("python pipelines/filter.py --config configs/nothing.yaml", "no config"),
        ("python pipelines/full.py --retries none", "no option --retries"),
        ("python pipelines/fill.py", "no script"),
        ("owseg fill", "no verb"),
        ("make everything", "no target"),
        ("ray job submit -- python pipelines/train.py train.workers=none", "train.workers"),
        ("python pipelines/sweep.py --vary 'seeds=[0, 1]'", "seeds"),
        ("wget links.tsv", "unknown program"),
    ],
)
def test_what_is_not_understood_is_found(command: str, mistake: str) -> None:
    (words,) = commands_of(command)
    with pytest.raises(AssertionError, match=mistake):
        check("page.md:1", words, {})


def test_a_block_is_read_as_a_shell_reads_it(tmp_path: Path) -> None:
    page = REPO / "docs" / "none.md"
    text = "1. So:\n\n   <!-- test: slow -->\n   ```console\n   $ a=1 'b\n   c' \\\n   $   d # e\n   printed\n   ```\n"
    (block,) = blocks_in(page, text)
    assert (block.kind, block.line, block.language) == ("slow", 3, "console")
    assert list(commands_of("A=1 b 'c\nd' \\\n  e # f\n\n# g\nh\n")) == [["b", "c\nd", "e"], ["h"]]
    assert block.script == "a=1 'b\n  d # e\n"


@pytest.mark.parametrize("block", [block for block in shell_blocks() if block.kind == "quick"], ids=lambda block: block.place)
def test_quick_commands_run(block: Block) -> None:
    run(f"PATH={sys.prefix}/bin:$PATH\n{block.script}", REPO)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's clone, with the environment set up, and what readers bring along: a photo."""
    folder = tmp_path_factory.mktemp("reader") / "clone"
    ours = shutil.ignore_patterns(".git", ".venv", "runs", "site", "__pycache__", ".*_cache")
    shutil.copytree(REPO, folder, ignore=ours, symlinks=True)
    (folder / ".venv").symlink_to(sys.prefix)
    scene_of(WorldConfig(size=160), 7)[0].image.save(folder / "photo.jpg")
    return folder


SLOW = [page for page in FOUND if any(block.kind in ("slow", "server") for block in blocks_of(page))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", SLOW, ids=[page.stem for page in SLOW])
def test_a_reader_of_the_page_gets_to_its_end(page: Path, clone: Path) -> None:
    """All that the page runs, in its order, in one shell that has nothing but what the page says, as they are printed."""
    written(page, clone)
    script = []
    for block in blocks_of(page):
        if block.kind == "server":
            (port,) = re.findall(r"--port (\d+)", block.script)
            script += ["(", block.script, ") < <(tail -f /dev/null) >server.log 2>&1 &"]  # a terminal's input does not end
            script += [f"until (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null; do kill -0 $!; sleep 0.2; done"]
        elif block.kind == "slow":
            script += [STAND_INS.get(line, line) for line in block.script.splitlines()]
    commands = "\n".join(script)
    if "runs/demo" in commands and STAND_INS["make demo"] not in commands:
        run(f"{ACTIVATE}\n{STAND_INS['make demo']}", clone)
    run(commands, clone)


def run(script: str, folder: Path) -> None:
    """Run commands in a folder, and end what they left running; raises with what they printed where one of them fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment(folder),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        printed.seek(0)
        assert process.returncode == 0, f"{script}\n{printed.read()[-8000:]}"
