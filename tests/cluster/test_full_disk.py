"""A disk that fills up while checkpoints are written: one line, and the last good checkpoint is resumed from."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.checkpoints import last
from cluster.session import SessionConfig
from cluster.train import CHECKPOINTS, train
from cluster.train_config import RayTrainJob, TrainConfig
from helpers import tiny
from owseg.snapshots import damage, step_of
from owseg.step_log import read_log
from pipelines.app.outcome import explain

STEPS = 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", folder], check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_the_last_good_checkpoint_stays_and_training_resumes_when_there_is_space(small_disk: Path, tmp_path: Path) -> None:
    out, filler = small_disk / "train", small_disk / "filler"
    out.mkdir()
    job = RayTrainJob(
        method=tiny.clip_config(steps=STEPS),
        encoder=tiny.encoder_config(tmp_path),
        shards=tuple(tiny.write_shards(tmp_path / "shards")),
        out=out,
        train=TrainConfig(log_every=1, checkpoint_every=2, engine="torch"),
    )
    session = SessionConfig(num_cpus=2)

    def fill(steps: list[dict[str, Any]]) -> None:
        if last(out / CHECKPOINTS) and not filler.exists():
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(2**16)):
                    pass

    with pytest.raises(Exception) as caught:  # noqa: PT011 -- the verb's one line is looked at
        train(job, session, fill)
    line = explain(caught.value)
    kept = last(out / CHECKPOINTS)
    assert kept is not None
    assert line is not None
    assert line.startswith(f"{out / CHECKPOINTS}: No space left on device; free some space, ")
    assert f"the last checkpoint is step {step_of(kept)}, {kept}" in line
    assert not damage(kept)
    assert step_of(kept) < STEPS

    filler.unlink()
    train(job, session, lambda steps: None)
    assert [entry["step"] for entry in read_log(job.log)] == list(range(1, STEPS + 1))
