"""The work of a sweep, and how it is shared: what cells have in common is done once, in a run of its own.

A piece of work is a run of one of the verbs in its own folder. What only some settings decide is made by a run whose config
holds those settings and no others; its folder is named by that config's digest, so that cells, and larger grids later on, find
it.

    shared/data-<digest>            the world, the corpus and its shards        (download)
    shared/<method>-<digest>        one training, the encoder's before others   (train)
    cells/<name>                    a cell: all of it linked, and scored        (full)
"""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cluster.tracking import TrackingConfig
from owseg.method_config import TrainableConfig
from owseg.methods import Methods
from pipelines import download, full, train
from pipelines.app.config import ConfigError
from pipelines.app.context import SUMMARY
from pipelines.app.outcome import DONE, FAILED, USER_MISTAKE, user_mistake
from pipelines.app.resolve import methods_to_train
from pipelines.app.run_dir import digest_of_run, open_run_dir
from pipelines.app.settings import Config
from pipelines.app.stage_marker import lost_files, read_marker
from pipelines.sweeps.grid import Cell

Verb = Literal["download", "train", "full"]
LAST_STAGE: dict[Verb, str] = {"download": "download", "train": "train", "full": "evaluate"}
LOG = "log.txt"
SHARED_FOLDERS = ("world", "corpus", "shards")
NOT_OF_A_CELL = ("checkpoints", "model.json")
"""What a training's folder holds that cells do without, or write themselves."""


@dataclass(frozen=True)
class Work:
    """A run of a verb in the folder of its config, once the works that it needs are done."""

    name: str
    verb: Verb
    config: Config
    needs: tuple["Work", ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def log(self) -> Path:
        return self.folder / LOG

    def is_done(self) -> bool:
        """Whether its folder holds the summary of this very run, and what the run itself made, as it made it."""
        try:
            summary = json.loads((self.folder / SUMMARY).read_text())
            stages = {stage: told["output"] for stage, told in summary["stages"].items()}
            if summary["config_digest"] != digest_of_run(self.config) or LAST_STAGE[self.verb] not in stages:
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return all(self._is_whole(stage) for stage, output in stages.items() if not (self.folder / output).is_symlink())

    def _is_whole(self, stage: str) -> bool:
        marker = read_marker(self.folder, stage)
        return marker is not None and not lost_files(self.folder, marker)


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended."""

    code: int
    message: str
    seconds: float


def plan(cells: Sequence[Cell], root: Path, tracking: TrackingConfig) -> list[Work]:
    """The works of all cells, each after those that it needs. `tracking` is where all of them are recorded."""
    works: dict[Path, Work] = {}

    def work(name: str, verb: Verb, config: Config, *needs: Work) -> Work:
        config = replace(config, tracking=tracking)
        return works.setdefault(Path(config.run_dir), Work(name, verb, config, needs))

    def shared(name: str, verb: Verb, config: Config, *needs: Work) -> Work:
        folder = root / "shared" / f"{name}-{digest_of_run(config)[:10]}"
        return work(folder.name, verb, replace(config, run_dir=str(folder)), *needs)

    for cell in cells:
        config = cell.config
        data = shared("data", "download", data_config(config))
        trained: dict[str, Work] = {}
        for method in methods_to_train(config):  # the encoder comes first
            needs = (data, trained["clip"]) if method.uses_clip and "clip" in trained else (data,)
            name = f"{method.name}-seed{cell.seed}"
            trained[method.name] = shared(name, "train", training_config(config, method), *needs)
        work(cell.name, "full", config, data, *trained.values())
    return list(works.values())


def data_config(config: Config) -> Config:
    """The settings that decide the shards, and no others."""
    return Config(
        miniature=config.miniature, filter=config.filter, download=config.download, session=config.session, methods=()
    )


def training_config(config: Config, method: TrainableConfig) -> Config:
    """The settings that decide a method's training, and no others."""
    settings = {method.name: method, **({"clip": config.method_settings.clip} if method.uses_clip else {})}
    return replace(
        data_config(config),
        seed=config.seed,
        encoder=config.encoder,
        train=config.train,
        method_settings=Methods(**settings),  # type: ignore[arg-type]  # each under its own name
        methods=("maskclip",) if method.name == "clip" else (method.name,),  # a row for which the encoder alone is trained
    )


def carry_out(work: Work, cwd: str) -> Outcome:
    """Do a piece of work in this process, which runs nothing else meanwhile: what it prints goes to its log."""
    began = time.monotonic()
    os.chdir(cwd)  # relative paths are those of the sweep's process
    work.folder.mkdir(parents=True, exist_ok=True)
    with _output_to(work.log):
        try:
            with open_run_dir(work.config, None) as config:
                for need in work.needs:
                    link(need.folder, work.folder)
                {"download": _download, "train": train.run, "full": full.run}[work.verb](config)
            code, message = DONE, ""
        except Exception as error:
            mistake = user_mistake(error)
            traceback.print_exc()
            code = FAILED if mistake is None else USER_MISTAKE
            message = " ".join((mistake or f"{type(error).__name__}: {error}").split())
    return Outcome(code, message, time.monotonic() - began)


def _download(config: Config) -> None:
    download.run(config, retry="none")


def link(source: Path, target: Path) -> None:
    """Let the run in `target` find what the run in `source` made, and the markers that say it is complete."""
    for name in SHARED_FOLDERS:
        if (source / name).exists():
            _link(source / name, target / name)
    for folder in sorted(source.glob("train/*")):
        (target / "train" / folder.name).mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.name not in NOT_OF_A_CELL:
                _link(file, target / "train" / folder.name / file.name)
    for pattern in ("filter", "download", "train-*"):
        for marker in source.glob(f"{pattern}.done.json"):
            shutil.copyfile(marker, target / marker.name)


def _link(source: Path, target: Path) -> None:
    """A relative link, so that the whole sweep may move."""
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        raise ConfigError(f"{target} was not made by the sweep; delete {target.parent} or choose another with run_dir=FOLDER")
    target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """All that this process prints, and what it starts, into a file."""
    saved = os.dup(1), os.dup(2)
    with log.open("a", encoding="utf-8") as file:
        _point_output_at(file.fileno(), file.fileno())
    try:
        yield
    finally:
        _point_output_at(*saved)
        for descriptor in saved:
            os.close(descriptor)


def _point_output_at(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
