"""Which trainings of a run saw an image, in which steps, and which checkpoints have these steps behind them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.train import CHECKPOINTS
from cluster.train_config import RayTrainJob
from owseg import InputError
from owseg.encoders import PRETRAIN
from owseg.exposure import Exposure, Shown
from owseg.fit import WEIGHTS
from owseg.ledger import SHAPE
from owseg.snapshots import POSITION, step_of
from owseg.training import BEFORE as BEFORE_LAST
from owseg.training import CHECKPOINT
from pipelines.app.resolve import methods_to_train, resolve_encoder_paths
from pipelines.app.settings import Config
from pipelines.lineages.answer import CheckpointSaw, TrainingSaw
from pipelines.train import BEFORE, FINGERPRINT, job_of
from storage.copies import fetched, folders_in, names_in
from storage.understood import Noted, shaped, understood

OTHER_DATA = "it was trained on other shards or with other settings than the run has now"


@dataclass(frozen=True)
class Training:
    """A training that has begun, in its folder."""

    job: RayTrainJob
    run_dir: Path
    left_out: list[str] = field(default_factory=list)
    """Lines on checkpoints that are not told of, as they are damaged."""

    @property
    def path(self) -> str:
        """Its folder, in the run's."""
        return self.job.out.relative_to(self.run_dir).as_posix()

    @cached_property
    def fingerprint(self) -> str:
        """What tells it from others; "" where it was not written down."""
        file = self.job.out / FINGERPRINT
        return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""

    @cached_property
    def checkpoints(self) -> list[tuple[str, int]]:
        """Its weights that are there, with the steps behind them."""
        out, found = self.job.out, []
        folders = [f"{CHECKPOINTS}/{name}" for name in folders_in(out / CHECKPOINTS)]
        for name in (*folders, BEFORE_LAST, CHECKPOINT):
            if POSITION in names_in(out / name):
                with Noted(out / name / POSITION, self.left_out):
                    found.append((f"{self.path}/{name}", step_of(fetched(out / name / POSITION).parent)))
        if WEIGHTS in names_in(out):
            found.append((f"{self.path}/{WEIGHTS}", max([self._told_steps, *(steps for _, steps in found)])))
        return found

    @cached_property
    def ledger(self) -> Mapping[str, Any] | str:
        """What it wrote down of the samples that it showed; a line where that is damaged."""
        try:
            with understood(self.job.ledger, "the training's next step writes it anew"):
                told: dict[str, Any] = shaped(json.loads(self.job.ledger.read_bytes()), SHAPE)
        except InputError as error:
            return str(error)
        return told

    @property
    def steps(self) -> int:
        """The steps that it is known to have taken."""
        return max([self._told_steps, *(steps for _, steps in self.checkpoints)])

    @property
    def _told_steps(self) -> int:
        return 0 if isinstance(self.ledger, str) else int(self.ledger["step"])

    @cached_property
    def exposure(self) -> Exposure | str:
        """What it showed, or why that cannot be told."""
        if isinstance(self.ledger, str):
            return self.ledger
        try:
            found = Exposure(self.job)
        except InputError as error:
            return str(error)
        return found if found.agrees_with(self.ledger) else OTHER_DATA

    def saw(self, keys: frozenset[str]) -> TrainingSaw | None:
        """What it showed of samples of these keys; None where it is known to have shown none of them."""
        if isinstance(self.exposure, str):
            return self._told(self.exposure, ())
        shown = self.exposure.of(keys, self.steps)
        return self._told("", shown) if shown or self.left_out else None

    def _told(self, unknown: str, shown: Sequence[Shown]) -> TrainingSaw:
        checkpoints = [
            CheckpointSaw(path=path, steps=steps, times=sum(one.step < steps for one in shown))
            for path, steps in self.checkpoints
            if unknown or any(one.step < steps for one in shown)
        ]
        return TrainingSaw(
            training=self.path,
            fingerprint=self.fingerprint,
            steps=self.steps,
            unknown=unknown,
            shown=[[one.step, one.place] for one in shown if not one.partner_of],
            partner=[[one.step, one.place] for one in shown if one.partner_of],
            checkpoints=checkpoints,
            left_out=[*self.left_out],
        )


def trainings_of(config: Config) -> list[Training]:
    """The trainings of a run that have begun, those that others have taken the place of among them."""
    run_dir, encoder = Path(config.run_dir), replace(resolve_encoder_paths(config), pretrained=PRETRAIN)
    found = []
    for method in methods_to_train(config):
        folders = list(_folders(run_dir / "train", method.name))
        if folders:
            job = job_of(config, method, encoder, run_dir)
            found += [Training(replace(job, out=folder), run_dir) for folder in folders]
    return [one for one in found if one.job.ledger.is_file()]


def _folders(trained: Path, name: str) -> Iterator[Path]:
    if (trained / name).is_dir():
        yield trained / name
    for folder in folders_in(trained / BEFORE):
        if folder.rpartition(".")[0] == name:
            yield trained / BEFORE / folder
