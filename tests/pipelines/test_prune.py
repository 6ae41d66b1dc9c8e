"""`owseg prune`: lists first, deletes only when told, and nothing that a complete stage's record names."""

import fcntl
import json
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.checkpoints import LIST, last, mend
from helpers.chain import Chain
from owseg.snapshots import write_part
from pipelines.app.stage_marker import read_marker
from pipelines.prune import main, spare


def write(file: Path, size: int = 1000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of which the filter and one training are complete."""
    folder = tmp_path / "run"
    write(folder / "config.yaml", 10)
    for name in ("filter", "train-clip"):
        (folder / f"{name}.done.json").write_text("{}")
    for name in ("corpus/_build/read/0.parquet", "corpus/kept/0.parquet", "shards/_work/0/x.tar", "shards/0.tar"):
        write(folder / name)
    for training in ("clip", "tcl"):
        write(folder / "train" / training / "weights.safetensors")
        for day in range(3):
            write(folder / "train" / training / "checkpoints" / f"checkpoint_2026-01-0{day + 1}_00-00-00" / "model")
    return folder


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_only_lists_without_yes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left(run)
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert f"{run / 'corpus/_build/read'}: 1.0 kB, left of a complete stage" in out
    assert "1.0 kB would be freed; --yes deletes" in out
    assert left(run) == before


def test_scratch_of_complete_stages_goes_and_of_others_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left(run)
    assert main([str(run), "--yes"]) == 0
    assert "1.0 kB freed" in capsys.readouterr().out
    assert before - left(run) == {"corpus/_build/read/0.parquet"}


@pytest.mark.parametrize(("keep", "stays"), [("1", ["checkpoint_2026-01-03_00-00-00"]), ("0", []), ("5", None)])
def test_checkpoints_of_finished_trainings(
    run: Path, capsys: pytest.CaptureFixture[str], keep: str, stays: list[str] | None
) -> None:
    def there(training: str) -> list[str]:
        return sorted(path.name for path in (run / "train" / training / "checkpoints").glob("checkpoint_2*"))

    before = there("clip")
    for one in (run / "train" / "clip" / "checkpoints").glob("checkpoint_2*"):
        (one / "model").unlink()
        write_part(one, 0, 1, lambda own: (own / "position.json").write_text('{"step": 1}') and None)
    assert main([str(run), "--keep-checkpoints", keep, "--yes"]) == 0, capsys.readouterr().err
    assert there("clip") == (before if stays is None else stays)
    assert there("tcl") == before, "a training that is not finished resumes from them"
    assert (run / "corpus" / "_build" / "read").exists(), "scratch was not asked for"
    if keep == "1":
        listed = json.loads((run / "train" / "clip" / "checkpoints" / "checkpoint_manager_snapshot.json").read_text())
        assert [one["checkpoint_dir_name"] for one in listed["checkpoint_results"]] == stays


def make_whole(run: Path, days: Sequence[int]) -> list[Path]:
    """The checkpoints of `run`'s clip, those of some days whole."""
    folders = sorted((run / "train" / "clip" / "checkpoints").glob("checkpoint_2*"))
    for day in days:
        (folders[day] / "model").unlink()
        write_part(folders[day], 0, 1, lambda own: (own / "position.json").write_text('{"step": 1}') and None)
    return folders


@pytest.mark.parametrize("list_names", [(), (0, 1), (0, 1, 2), None])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("whole", [(0, 1), (0,), (1,)])
def test_checkpoints_that_are_damaged_do_not_count(
    run: Path, capsys: pytest.CaptureFixture[str], whole: tuple[int, ...], keep: int, list_names: tuple[int, ...] | None
) -> None:
    """The newest is damaged: the newest whole ones stay, whatever Ray's list names; a training would go on from the last."""
    folders = make_whole(run, whole)
    names = [{"checkpoint_dir_name": folders[day].name} for day in list_names or ()]
    listed = folders[0].parent / LIST
    listed.write_text("{" if list_names is None else json.dumps({"checkpoint_results": names}))
    stays = [folders[day] for day in whole[-keep:]]
    assert main([str(run), "--keep-checkpoints", str(keep)]) == 0
    out = capsys.readouterr().out
    assert f"{folders[2]}: 1.0 kB, a damaged checkpoint" in out or list_names == (0, 1)
    assert main([str(run), "--keep-checkpoints", str(keep), "--yes"]) == 0
    assert [folder for folder in folders if folder.is_dir()] == stays
    assert mend(folders[0].parent, version("ray")) == []
    assert [folder for folder in folders if folder.is_dir()] == stays
    assert last(folders[0].parent) == stays[-1]


def test_where_no_checkpoint_is_whole_all_stay(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left(run)
    assert main([str(run), "--keep-checkpoints", "1", "--yes"]) == 0
    assert "left alone, none of its checkpoints is whole (a damaged checkpoint" in capsys.readouterr().out
    assert left(run) == before


def test_a_file_in_the_place_of_a_folder_stays_and_keeps_nothing(run: Path) -> None:
    (run / "features.done.json").write_text("{}")
    before = left(run)
    for name in ("corpus/_work", "features/tcl/_work", "corpus/_build/sign"):
        write(run / name)
    assert main([str(run), "--yes"]) == 0
    assert before - left(run) == {"corpus/_build/read/0.parquet"}
    assert (run / "corpus" / "_work").is_file()


def test_runs_that_are_young_or_at_work_are_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--older-than", "3"]) == 0
    assert "left alone, changed 0 days ago" in capsys.readouterr().out
    for path in run.iterdir():
        os.utime(path, (time.time() - 5 * 86_400,) * 2)
    assert main([str(run), "--older-than", "3"]) == 0
    assert "would be freed" in capsys.readouterr().out
    if (child := os.fork()) == 0:  # a lock does not keep out the process that has it
        with (run / ".lock").open("wb") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            lock.write(b"process 5 on here")
            lock.flush()
            (run / "held").touch()
            time.sleep(60)
        os._exit(0)
    try:
        while not (run / "held").exists():
            time.sleep(0.01)
        assert main([str(run), "--yes"]) == 0
        assert "left alone, process 5 on here works on it" in capsys.readouterr().out
        assert (run / "corpus" / "_build" / "read").exists()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["."], "is no run's folder"),
        (["s3://bucket/run"], "lies in an object store"),
        (["RUN", "--keep-checkpoints", "two"], "--keep-checkpoints: takes a whole number"),
        (["RUN", "--older-than", "-1"], "--older-than"),
        (["RUN", "--older-than", "9" * 5000], "--older-than: takes a whole number of 0 to 999999999, not '9999"),
        ([""], "names no folder"),
    ],
)
def test_mistakes_are_one_line(run: Path, capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    os.chdir(run.parent)
    assert main([str(run) if text == "RUN" else text for text in argv]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_nothing_that_a_record_names_may_go(chain: Chain) -> None:
    """Of a real run: no file of any stage's record is among what all options together would delete."""
    going = [one.path for one in spare(chain.folder, checkpoints=0, scratch=True)]
    assert going
    for file in chain.folder.glob("*.done.json"):
        marker = read_marker(chain.folder, file.name.removesuffix(".done.json"))
        assert marker is not None
        for name in (*marker.files, "corpus/kept", "corpus/dropped", "shards/00000.tar", "corpus/_build/findings.json"):
            path = chain.folder / name
            assert not any(path == gone or gone in path.parents for gone in going)
