"""A stage that is begun again is not complete until it ends, and only while its files are as it wrote them."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.tracking import NullTracker
from filtering.files import write_table
from filtering.shards import run_local
from pipelines.app.context import Context, Result
from pipelines.app.settings import Config
from pipelines.train import clear_other


def test_a_stage_cut_short_is_not_complete_for_what_it_was_before(tmp_path: Path) -> None:
    context = Context(Config(run_dir=str(tmp_path)), NullTracker())
    done: list[str] = []

    def work() -> Result:
        done.append("work")
        return {"digest": "d"}

    def killed() -> Result:
        raise KeyboardInterrupt

    for _ in range(2):
        context.stage("filter", "before", tmp_path, work)
    assert len(done) == 1
    with pytest.raises(KeyboardInterrupt):
        context.stage("filter", "after", tmp_path, killed)
    assert context.stage("filter", "before", tmp_path, work)["status"] == "done"
    assert len(done) == 2


def test_a_complete_stage_is_done_again_only_where_its_result_asks_for_it(tmp_path: Path) -> None:
    context = Context(Config(run_dir=str(tmp_path)), NullTracker())
    left = iter([2, 1])

    def work() -> Result:
        return {"digest": "d", "left": next(left)}

    def stage(least: int) -> Result:
        return context.stage("download", "f", tmp_path, work, again=lambda result: result["left"] >= least)

    results = [stage(2), stage(3), stage(2), stage(2)]
    assert [(result["status"], result["left"]) for result in results] == [
        ("done", 2),
        ("skipped", 2),
        ("done", 1),
        ("skipped", 1),
    ]


def test_a_training_goes_on_from_its_own_checkpoints_alone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tcl" / "checkpoints" / "position.json"
    for fingerprint, kept in (("these shards", False), ("these shards", True), ("more shards", False)):
        clear_other(tmp_path / "tcl", fingerprint)
        assert checkpoint.is_file() is kept
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()


class Stages:
    """A stage that writes a file and two shards into "out", done again whenever it is not complete."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.out = run_dir, run_dir / "out"
        self.done = 0

    def work(self) -> Result:
        self.done += 1
        sources = [self.run_dir / f"{shard:05d}.parquet" for shard in range(2)]
        for shard, source in enumerate(sources):
            write_table(source, pa.table({"n": [shard]}))
        run_local(lambda: copy, sources, self.out, fingerprint="f")
        (self.out / "report.json").write_text("{}")
        return {"digest": "d", "shards": 2}

    def __call__(self, *, verify: bool = False) -> str:
        context = Context(Config(run_dir=str(self.run_dir)), NullTracker(), verify)
        result = context.stage("filter", "f", self.out, self.work, files=lambda: [self.out / "report.json"])
        return str(result["status"])


def copy(table: pa.Table, scratch: Path) -> dict[str, int]:
    (scratch / f"{scratch.name}.txt").write_text(f"shard {table['n'][0]}")
    (scratch / "_build").mkdir()
    (scratch / "_build" / f"{scratch.name}.txt").write_text("an aid")
    return {}


@pytest.mark.parametrize(
    ("file", "content", "verify", "said"),
    [
        ("out/00001.txt", None, False, "1 of 3 files missing (out/00001.txt)"),
        ("out/report.json", None, False, "1 of 3 files missing (out/report.json)"),
        ("out/_done/00000.done.json", None, False, "1 of 3 files missing (out/_done/00000.done.json)"),
        ("out/00001.txt", "", False, "1 of 3 files of another size (out/00001.txt)"),
        ("out/00001.txt", "shard 1 and more", False, "1 of 3 files of another size (out/00001.txt)"),
        ("out/00000.txt", "SHARD 0", True, "1 of 3 files changed (out/00000.txt)"),
        ("out/report.json", "[]", True, "1 of 3 files changed (out/report.json)"),
        ("out/00000.txt", "SHARD 0", False, ""),  # names and sizes are as they were
        ("out/_build/00000.txt", None, False, ""),  # no output: deleted to save room
    ],
)
def test_a_stage_is_complete_while_its_files_are_as_it_wrote_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, verify: bool, said: str
) -> None:
    stage = Stages(tmp_path)
    assert [stage(), stage(), stage(verify=True)] == ["done", "skipped", "skipped"]
    before = {path: path.read_bytes() for path in stage.out.glob("*.*")}
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    capsys.readouterr()
    assert stage(verify=verify) == ("done" if said else "skipped")
    assert (f"filter: {said}: made again" in capsys.readouterr().out.splitlines()) == bool(said)
    if said:
        assert {path: path.read_bytes() for path in stage.out.glob("*.*")} == before
        assert stage(verify=True) == "skipped"


def test_only_the_shard_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    stage = Stages(tmp_path)
    stage()
    (stage.out / "00000.txt").unlink()
    kept = (stage.out / "00001.txt").stat().st_mtime_ns
    stage()
    assert (stage.out / "00000.txt").read_text() == "shard 0"
    assert (stage.out / "00001.txt").stat().st_mtime_ns == kept


def test_of_a_stage_that_an_older_version_finished_files_only_have_to_be_there(tmp_path: Path) -> None:
    stage = Stages(tmp_path)
    stage()
    for marker in [tmp_path / "filter.done.json", *(stage.out / "_done").iterdir()]:
        told = json.loads(marker.read_text())
        for key in ("sizes", "output", "shards", *(["files"] if marker.parent == tmp_path else [])):
            told.pop(key, None)
        marker.write_text(json.dumps(told))
    (stage.out / "00000.txt").write_text("longer than it was")
    assert stage() == "skipped"
    (stage.out / "00000.txt").unlink()
    assert [stage(), stage()] == ["done", "skipped"]
    assert (stage.out / "00000.txt").read_text() == "shard 0"
