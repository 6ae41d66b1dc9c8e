"""Ray Train's folder of checkpoints: damage falls back to the one before, orphans go, and Ray reads the list that is left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.checkpoints import LIST, _list_of, mend, parts_of, sweep, sweep_parts
from owseg.snapshots import write_part

NAMES = [f"checkpoint_2026-11-29_03-0{minute}-00.123456" for minute in range(6)]
VERSION = "2.60.0"


def checkpoint(storage: Path, number: int) -> Path:
    """The checkpoint after step 10 x number, whole."""
    folder = storage / NAMES[number]
    folder.mkdir(parents=True)

    def write(part: Path) -> None:
        (part / "position.json").write_text(json.dumps({"step": 10 * number}))
        (part / "method.safetensors").write_bytes(b"weights" * 100)

    write_part(folder, 0, 1, write)
    return folder


def listing(*numbers: int) -> dict[str, object]:
    results = [{"version": 0, "checkpoint_dir_name": NAMES[number], "metrics": {"step": 10 * number}} for number in numbers]
    names = [NAMES[number] for number in numbers]
    return _list_of(names or [""], VERSION) | {"checkpoint_results": results}


def storage_with(folder: Path, there: list[int], listed: list[int]) -> Path:
    for number in there:
        checkpoint(folder, number)
    (folder / LIST).write_text(json.dumps(listing(*listed)))
    (folder / "notes").mkdir()
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:99])


def state(storage: Path) -> tuple[list[int], list[int]]:
    """The checkpoints that are there, and those on Ray's list."""
    assert (storage / "notes").is_dir(), "not ours"
    there = [NAMES.index(path.name) for path in sorted(storage.glob("checkpoint_2*"))]
    if not (storage / LIST).exists():
        return there, []
    listed = json.loads((storage / LIST).read_text())
    return there, [NAMES.index(result["checkpoint_dir_name"]) for result in listed["checkpoint_results"]]


def test_what_is_whole_is_left_as_it_is(tmp_path: Path) -> None:
    storage = storage_with(tmp_path, [1, 2], [1, 2])
    before = (storage / LIST).read_bytes()
    assert mend(storage, VERSION) == []
    assert (storage / LIST).read_bytes() == before
    assert state(storage) == ([1, 2], [1, 2])


def test_a_run_killed_and_resumed_keeps_two(tmp_path: Path) -> None:
    """What a kill left between a checkpoint's writing and its place on the list, and before its deletion."""
    storage = storage_with(tmp_path, [0, 1, 2, 3, 4, 5], [1, 3])
    assert mend(storage, VERSION) == []
    assert state(storage) == ([1, 3], [1, 3])
    checkpoint(storage, 4)
    sweep(storage)
    assert state(storage) == ([1, 3], [1, 3])


SPOILT: dict[str, tuple[Callable[[Path], object], list[int], str]] = {
    "newest cut": (lambda storage: cut(storage / NAMES[2] / "method.safetensors"), [1], "resumes from step 10"),
    "newest gone": (lambda storage: (storage / NAMES[2]).rename(storage / "elsewhere"), [1], "resumes from step 10"),
    "oldest gone": (lambda storage: (storage / NAMES[1]).rename(storage / "elsewhere"), [2], ""),
    "both cut": (lambda storage: [cut(file) for file in storage.glob("*/method.safetensors")], [], "begins anew"),
    "list cut": (lambda storage: cut(storage / LIST), [2], "resumes from step 20"),
    "list empty": (lambda storage: (storage / LIST).write_text(""), [2], "resumes from step 20"),
    "list and newest": (
        lambda storage: (cut(storage / LIST), cut(storage / NAMES[2] / "method.safetensors")),
        [1],
        "resumes from step 10",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, what: str) -> None:
    spoil, left, outcome = SPOILT[what]
    storage = storage_with(tmp_path, [1, 2], [1, 2])
    spoil(storage)
    said = mend(storage, VERSION)
    assert state(storage) == (left, left)
    if outcome:
        assert said[-1].endswith(outcome)
        assert len(said) >= 2
    assert mend(storage, VERSION) == [], "once is enough"


@pytest.mark.parametrize("key", _list_of([""], VERSION))
def test_a_list_that_ray_would_not_read_is_written_anew(key: str, tmp_path: Path) -> None:
    storage = storage_with(tmp_path, [1, 2], [1, 2])
    (storage / LIST).write_text(json.dumps({name: value for name, value in listing(1, 2).items() if name != key}))
    assert mend(storage, VERSION) == [f"{storage / LIST}: damaged", "training resumes from step 20"]
    assert json.loads((storage / LIST).read_text()).keys() == listing(1).keys()


def test_a_folder_in_place_of_the_list_goes(tmp_path: Path) -> None:
    storage = storage_with(tmp_path, [1, 2], [1, 2])
    (storage / LIST).unlink()
    (storage / LIST).mkdir()
    assert mend(storage, VERSION)[-1] == "training resumes from step 20"
    assert (storage / LIST).is_file()


def test_ray_reads_the_list(tmp_path: Path) -> None:
    """By the model that it checks its own with."""
    manager = pytest.importorskip("ray.train.v2._internal.execution.checkpoint.checkpoint_manager")
    storage = storage_with(tmp_path, [1, 2], [1, 2])
    cut(storage / NAMES[2] / "method.safetensors")
    mend(storage, VERSION)
    found = manager._CheckpointManagerState.model_validate(json.loads((storage / LIST).read_text()))
    assert found.latest_checkpoint_result.checkpoint_dir_name == NAMES[1]
    assert found.checkpoint_report_indices == [0]
    assert found.current_report_index == 1


def test_a_new_folder_is_no_mistake(tmp_path: Path) -> None:
    assert mend(tmp_path, VERSION) == []
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_killed_ranks_left_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    mine, others = (tmp_path / f"{parts_of(Path(out))}abc" for out in ("/runs/a", "/runs/b"))
    for folder in (mine, others):
        folder.mkdir()
        (folder / "part").write_bytes(b"x")
    sweep_parts(Path("/runs/a"))
    assert list(tmp_path.iterdir()) == [others]
