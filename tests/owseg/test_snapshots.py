"""Checkpoints of a training under way: damage is seen, the whole one before is resumed from, and what is said of it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import tiny
from helpers.files import files_under
from owseg import training
from owseg.snapshots import damage, newest_whole, write_part
from owseg.training import BEFORE, CHECKPOINT, LoopConfig, TrainJob, train


def part(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "step" / name
        file.parent.mkdir()
        file.write_bytes(content)
        (folder / f"top {name}").write_bytes(content[::-1])

    return write


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of two ranks, with the step."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for rank in range(2):
        write_part(folder, rank, 2, part(f"rank{rank}.pt", bytes(range(100)) * 7))
    return folder


def test_ranks_write_into_one_folder(checkpoint: Path) -> None:
    found = files_under(checkpoint, "**/*")
    assert {Path(name).name for name in found} == {
        *("files.0.json", "files.1.json", "rank0.pt", "rank1.pt", "top rank0.pt", "top rank1.pt")
    }
    assert damage(checkpoint) == ""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: cut(folder / "step" / "rank1.pt", 650), "step/rank1.pt has 650 bytes of 700"),
        (lambda folder: cut(folder / "step" / "rank1.pt", 0), "step/rank1.pt has 0 bytes of 700"),
        (lambda folder: flip(folder / "top rank0.pt"), "top rank0.pt is not as it was written"),
        (lambda folder: (folder / "step" / "rank0.pt").unlink(), "rank0.pt is missing"),
        (lambda folder: (folder / "files.1.json").unlink(), "files.1.json is missing"),
        (lambda folder: cut(folder / "files.1.json", 20), "its list of files cannot be read"),
        (lambda folder: (folder / "files.0.json").write_text("[]"), "its list of files cannot be read"),
        (lambda folder: (folder / "files.0.json").unlink(), "files.0.json is missing"),
        (lambda folder: (folder / "files.0.json").write_text('{"ranks": 1, "files": {}}'), "2 ranks have listed their files"),
        (lambda folder: [file.unlink() for file in folder.glob("files.*")], "position.json is missing"),  # an older version's
        (
            lambda folder: [folder.joinpath("optimizer.0.safetensors").touch(), *map(Path.unlink, folder.glob("files.*"))],
            "files.0.json is missing",
        ),
    ],
)
def test_damage_is_told(checkpoint: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(checkpoint)
    assert damage(checkpoint).startswith(reason)
    found, wrong = newest_whole([checkpoint.with_name("none"), checkpoint])
    assert found is None
    assert wrong == [f"{checkpoint}: a damaged checkpoint ({damage(checkpoint)})"]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SPOILT: dict[str, tuple[Callable[[Path], object], int]] = {
    "weights cut": (lambda out: cut(out / CHECKPOINT / "method.safetensors", 1000), 4),
    "optimizer flipped": (lambda out: flip(out / CHECKPOINT / "optimizer.0.safetensors"), 4),
    "position empty": (lambda out: cut(out / CHECKPOINT / "position.json", 0), 4),
    "killed while it was put in place": (lambda out: (out / CHECKPOINT).rename(out / f".{CHECKPOINT}"), 4),
    "both": (lambda out: [flip(file) for file in out.glob("checkpoint*/method.safetensors")], 0),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_training_resumes_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And ends with the weights that it would have had; where none is whole, it begins anew."""
    spoil, step = SPOILT[what]
    tiny.write_shards(tmp_path / "shards", 16)
    job = TrainJob(
        method=tiny.clip_config(6),
        encoder=tiny.encoder_config(tmp_path),
        shards=tuple(sorted((tmp_path / "shards").glob("*.tar"))),
        out=tmp_path / "out",
        train=LoopConfig(log_every=1, checkpoint_every=2),
    )
    whole = train(job).read_bytes()
    assert sorted(folder.name for folder in job.out.glob("*checkpoint*")) == [CHECKPOINT, BEFORE]
    spoil(job.out)
    begun = []
    fit = training.fit
    monkeypatch.setattr(
        training, "fit", lambda *given, resume, **rest: begun.append(resume) or fit(*given, resume=resume, **rest)
    )
    with caplog.at_level(logging.WARNING):
        assert train(job).read_bytes() == whole
    assert begun == [job.out / BEFORE if step else None]
    if "killed" not in what:
        assert f"{job.out / CHECKPOINT}: a damaged checkpoint (" in caplog.text
        assert ("resumes from the one before" if step else "begins anew") in caplog.text
    assert [json.loads(line)["step"] for line in job.log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
