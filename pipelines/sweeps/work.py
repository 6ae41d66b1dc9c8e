"""The work of a sweep, and how it is shared: what cells have in common is done once, in a run of its own.

A piece of work is a run of one of the verbs in its own folder. What only some settings decide is made by a run whose config
holds those settings and no others; its folder is named by that config's digest, so that cells, and larger grids later on, find
it.

    shared/data-<digest>            the world, the corpus and its shards        (download)
    shared/<method>-<digest>        one training, towers' before others      (train)
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
from typing import Any, Literal

from cluster.tracking import TrackingConfig
from filtering.secrets import masked
from owseg.encoders import PRETRAIN
from owseg.fields import scores_only_settings
from owseg.method_config import MethodConfig, TrainableConfig
from owseg.methods import METHODS, TRAINABLE, Methods
from owseg.methods.proxyclip import ProxyClipConfig
from pipelines import download, evaluate, full, train
from pipelines.app.config import ConfigError
from pipelines.app.context import SUMMARY
from pipelines.app.masked_output import masked_output
from pipelines.app.outcome import DONE, FAILED, USER_MISTAKE, Scene, explain
from pipelines.app.resolve import asks_for_tower, methods_to_train
from pipelines.app.run_dir import digest_of_run, open_run_dir
from pipelines.app.settings import Config
from pipelines.app.stage_marker import lost_files, read_marker
from pipelines.app.streams import make_safe
from pipelines.sweeps.grid import Cell

Verb = Literal["download", "train", "full"]
LAST_STAGE: dict[Verb, str] = {"download": "download", "train": "train", "full": "evaluate"}
LOG = "log.txt"
SHARED_FOLDERS = ("world", "corpus", "shards")
ROWS_OF_TOWERS: dict[str, tuple[str, MethodConfig]] = {
    "clip": ("maskclip", METHODS["maskclip"]),
    "dino": ("proxyclip", ProxyClipConfig(image_weights=PRETRAIN)),
}
"""Rows for which a tower alone is trained: a table has no row of a tower."""
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
            summary = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
            stages = {stage: told["output"] for stage, told in summary["stages"].items()}
            if summary["config_digest"] != digest_of_run(self.config) or LAST_STAGE[self.verb] not in stages:
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        own = [stage for stage, output in stages.items() if not (self.folder / output).is_symlink()]
        scored = self.config.methods, self.config.evaluate.names
        readable = self.verb != "full" or not evaluate.damage(self.folder / "evaluate", *scored)
        return readable and all(map(self._is_whole, own))

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
        for method in methods_to_train(config):  # towers come first
            ours = training_config(config, method)
            needs = [trained[one.name] for one in methods_to_train(ours) if one.name in trained]
            trained[method.name] = shared(f"{method.name}-seed{cell.seed}", "train", ours, data, *needs)
        work(cell.name, "full", config, data, *trained.values())
    return list(works.values())


def data_config(config: Config) -> Config:
    """The settings that decide the shards, and no others."""
    settings = Config(
        miniature=config.miniature, filter=config.filter, download=config.download, session=config.session, methods=()
    )
    return replace(settings, evaluate=config.evaluate) if config.filter.exclude_benchmark_classes else settings


def training_config(config: Config, method: TrainableConfig) -> Config:
    """The settings that decide a method's training, and no others."""
    methods, usual = config.method_settings, TRAINABLE[method.name]
    scored: dict[str, Any] = {name: getattr(usual, name) for name in scores_only_settings(method)}  # these have no say
    asked: MethodConfig = getattr(methods, method.name)
    settings: dict[str, Any] = {method.name: replace(asked, **scored)}
    row, of_row = ROWS_OF_TOWERS.get(method.name, (method.name, asked))
    settings.setdefault(row, of_row)
    settings |= {"clip": methods.clip} if of_row.uses_clip else {}
    settings |= {"dino": methods.dino} if asks_for_tower(of_row) else {}
    return replace(
        data_config(config),
        seed=config.seed,
        encoder=config.encoder,
        train=config.train,
        method_settings=Methods(**settings),
        methods=(row,),
    )


def carry_out(work: Work, cwd: str) -> Outcome:
    """Do a piece of work in this process, which runs nothing else meanwhile: what it prints goes to its log."""
    began = time.monotonic()
    os.chdir(cwd)  # relative paths are those of the sweep's process
    work.folder.mkdir(parents=True, exist_ok=True)
    with _output_to(work.log), masked_output():
        make_safe()
        try:
            with open_run_dir(work.config, None) as config:
                for need in work.needs:
                    link(need.folder, work.folder)
                {"download": _download, "train": train.run, "full": full.run}[work.verb](config)
            code, message = DONE, ""
        except Exception as error:
            mistake = explain(error, Scene(work.folder))
            traceback.print_exc()
            code = FAILED if mistake is None else USER_MISTAKE
            message = masked(" ".join((mistake or f"{type(error).__name__}: {error}").split()))
    return Outcome(code, message, time.monotonic() - began)


def _download(config: Config) -> None:
    download.run(config, retry="none")


def link(source: Path, target: Path) -> None:
    """Let the run in `target` find what the run in `source` made, and the markers that say it is complete."""
    for name in SHARED_FOLDERS:
        if (source / name).exists():
            _link(source / name, target / name)
    for folder in sorted(path for path in source.glob("train/*") if path.name in TRAINABLE):
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
