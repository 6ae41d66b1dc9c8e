"""Make room in the folders of runs: what no complete stage needs, told with its bytes, and deleted with --yes.

Without further options: scratch that killed starts left, aids of complete stages, and copies of logs. A run that a process
works on is left alone, and never is anything deleted that a complete stage's record names, but by --keep-checkpoints 0.

    owseg prune runs/cc4m
    owseg prune runs/* --older-than 30 --keep-checkpoints 1 --yes
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cluster.checkpoints import newest, relist
from cluster.run_log import FOLDER as LOGS
from filtering.images.progress import size
from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError
from pipelines.app.run_files import LocalRun, named_folder
from storage.client import is_object_store

SCRATCH = {
    "filter": ("corpus/_work", "corpus/_build/read", "corpus/_build/mark/marked", "corpus/_build/sign"),
    "download": ("shards/_work", "shards/_previous"),
    "features": ("features/*/_work",),
}
"""By stage the folders of work under way, and of rows between two passes; patterns."""
DAY_SECONDS = 86_400
MOST_DIGITS = 9
"""Of a number on the command line."""
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Spare:
    """A file or folder that may go, and why."""

    path: Path
    why: str

    @property
    def bytes(self) -> int:
        """What it takes on the disk."""
        if not self.path.is_dir():
            return self.path.stat().st_size
        return sum(path.lstat().st_size for path in self.path.rglob("*") if path.is_file())


def spare(folder: Path, *, checkpoints: int | None, scratch: bool) -> Iterator[Spare]:
    """What of a run may go; `checkpoints` are how many of each finished training stay, None all of them."""
    done = {path.name.removesuffix(".done.json") for path in folder.glob("*.done.json")}
    if scratch:
        patterns = [pattern for stage, some in SCRATCH.items() if stage in done for pattern in some]
        for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
            if path.is_dir() and any(path.iterdir()):  # a file of that name is none of ours
                yield Spare(path, "left of a complete stage")
        for path in sorted((folder / LOGS).glob("*.1.jsonl")):
            yield Spare(path, "the older half of a log")
        for path in sorted(folder.rglob(".*.tmp")):
            yield Spare(path, "half written when a process was killed")
    if checkpoints is not None:
        for training in sorted((folder / "train").glob(f"*/{CHECKPOINTS}")):
            if f"train-{training.parent.name}" in done or "train" in done:
                yield from _old_checkpoints(training, checkpoints)


def _old_checkpoints(folder: Path, keep: int) -> Iterator[Spare]:
    """All but the newest of a finished training that it could go on from: damaged ones do not count."""
    if not keep:
        if any(path.is_dir() for path in folder.glob("checkpoint_*")):
            yield Spare(folder, "the checkpoints of a finished training")
        return
    kept, others = newest(folder, keep)
    if others and not kept:
        print(f"{folder}: left alone, none of its checkpoints is whole ({'; '.join(others.values())})", flush=True)
        return
    for name in sorted(others):
        yield Spare(folder / name, f"{others[name]}, of a finished training")


def prune(given: argparse.Namespace) -> None:
    """The verb."""
    checkpoints = _number(given.keep_checkpoints, "--keep-checkpoints")
    days = _number(given.older_than, "--older-than") or 0
    scratch = given.scratch or checkpoints is None
    freed = 0
    for name in given.run_dirs:
        folder = _run(name)
        if holder := LocalRun(folder).holder():
            print(f"{folder}: left alone, {holder} works on it", flush=True)
            continue
        if days and _age_days(folder) < days:
            print(f"{folder}: left alone, changed {_age_days(folder):.0f} days ago", flush=True)
            continue
        spares = list(spare(folder, checkpoints=checkpoints, scratch=scratch))
        for one in spares:
            taken = one.bytes
            freed += taken
            print(f"{one.path}: {size(taken)}, {one.why}", flush=True)
            if given.yes:
                _delete(one.path)
        if given.yes:
            for training in {one.path.parent for one in spares if one.path.parent.name == CHECKPOINTS}:
                relist(training, version("ray"))
    print(f"{size(freed)} {'freed' if given.yes else 'would be freed; --yes deletes'}", flush=True)


def _run(name: str) -> Path:
    """The folder of a run. Raises ConfigError for anything else, lest something else is deleted."""
    if is_object_store(name):
        raise ConfigError(f"{name}: lies in an object store; its own lifecycle rules are the way to make room there")
    folder = named_folder(name).resolve()
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{name}: is no run's folder, as it has no config.yaml; give the folders of runs")
    return folder


def _age_days(folder: Path) -> float:
    """Days since one of its own files was written last."""
    newest = max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
    return (time.time() - newest) / DAY_SECONDS


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _number(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > MOST_DIGITS:
        raise ConfigError(f"{option}: takes a whole number of 0 to {'9' * MOST_DIGITS}, not {text[:20]!r}")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    parser = Parser(usage=f"{command_name()} RUN_DIR... [option ...]", description=__doc__)
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="folders of runs")
    parser.add_argument("--scratch", action="store_true", help="what is left of work (the default without --keep-checkpoints)")
    parser.add_argument("--keep-checkpoints", metavar="N", help="of each finished training, the newest N; its weights stay")
    parser.add_argument("--older-than", metavar="DAYS", help="only runs in which nothing was written for so many days")
    parser.add_argument("--yes", action="store_true", help="delete; without it they are only listed")
    return run_parsed(parser, argv, prune)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
