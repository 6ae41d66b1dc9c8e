"""Features of a training's tars, made on Ray: a tar is a shard of work, as a part of a corpus is for the other stages."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch

from cluster.data import run_on_ray
from cluster.inputs import bring_here
from cluster.session import SessionConfig
from cluster.tracking import Run
from cluster.train_config import RayTrainJob
from filtering.files import digest_of, write_json
from filtering.shards import LIVE, Marker, Runner, finished, write_pointer
from owseg.engine import usable_device
from owseg.features import FeatureMaker, ensure_frozen, made_with
from owseg.stored_features import file_of, samples_of, tar_of
from owseg.training import build, reader_of
from storage.copies import discard, names_in

DTYPES = {"float16": torch.float16, "float32": torch.float32}
"""Types of the files' numbers, by the values of `train.features`."""
MILLISECONDS = "milliseconds"
"""Count of a worker's time for a tar."""
TARS = "_tars"
"""Folder of a small file for each tar, which says which it is: the sources of the work."""


class FeatureWork:
    """Makes the features of the tars that a source points at."""

    def __init__(self, job: RayTrainJob) -> None:
        """job: the training that will read them."""
        bring_here(job.method, job.encoder, job.start)
        torch.set_num_threads(1)
        method, gpu = build(job), job.train.use_gpu
        self.make = FeatureMaker(
            ensure_frozen(method, job.method),
            job.method,
            reader_of(job, method),
            job.normalisation,
            dtype=DTYPES[job.train.features],
            bf16=job.train.bf16,
            device=usable_device("cuda" if gpu else "cpu"),
            loader_workers=job.train.loader_workers if gpu else 0,
        )

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        (number,) = table["number"].to_pylist()
        began = time.monotonic()
        counts = self.make(number, file_of(scratch, number), lambda done: write_json(scratch / LIVE, {"rows": done}))
        return {**counts, MILLISECONDS: round(1000 * (time.monotonic() - began))}


class Made(NamedTuple):
    """What came of it."""

    markers: list[Marker]
    new: int
    """Samples whose features were made just now."""
    seconds: float
    """What that took, with the start of its processes."""


@dataclass(frozen=True)
class FeaturePlan:
    """What there is to be made for a training."""

    job: RayTrainJob
    made_with: Mapping[str, str]
    """What features depend on besides the tars."""
    tars: Sequence[str]
    """What tells each tar from others."""
    samples: Sequence[int]
    """How many usable ones each has."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the features."""
        return digest_of([self._settings, *self.tars])

    @property
    def _settings(self) -> str:
        return digest_of([dict(self.made_with), self.job.train.features])

    def make(self, out: Path, run: Runner) -> Made:
        """Make those in `out` that are not there yet. Raises InputError as `FeatureMaker` does."""
        train, sources = self.job.train, list(self._sources(out))
        kept = {file_of(out, number).name for number in range(len(sources))}
        for name in set(names_in(out)) - kept:  # of a training on more tars
            discard(out / name)
        there = [finished(source, out, self._settings) for source in sources]
        began = time.monotonic()
        markers = run(
            partial(FeatureWork, self.job),
            sources,
            out,
            fingerprint=self._settings,
            label=f"features {self.job.method.name}",
            unit="images",
            cores=1 + train.loader_workers if train.use_gpu else 1,
        )
        new = sum(samples for samples, marker in zip(self.samples, there, strict=True) if marker is None)
        return Made(markers, new, time.monotonic() - began)

    def _sources(self, out: Path) -> Iterator[Path]:
        for number, (tar, samples) in enumerate(zip(self.tars, self.samples, strict=True)):
            source = out / TARS / f"{number:05}.parquet"
            write_pointer(source, [{"number": number, "tar": tar}], samples)
            yield source


def runner_of(job: RayTrainJob, session: SessionConfig, record: Run) -> Runner:
    """Where a training's features are made: on the nodes of the data or, where training has GPUs, on these."""
    if job.train.use_gpu:
        return run_on_ray(replace(session, data_label=session.train_label), record, gpu=True)
    return run_on_ray(session, record)


def plan_features(job: RayTrainJob) -> FeaturePlan:
    """What is to be made for a training. Raises InputError where it can read no features, or its tars cannot be read."""
    method = ensure_frozen(build(job), job.method)
    reader = reader_of(job, method)
    told = made_with(method, job.method, reader, job.normalisation, bf16=job.train.bf16)
    tars = range(len(reader.shards))
    return FeaturePlan(
        job, told, [tar_of(reader, number) for number in tars], [len(samples_of(reader, number)) for number in tars]
    )
