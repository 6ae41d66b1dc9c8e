"""Ray Data and `run_local` write the same bytes, and a killed driver loses nothing that was finished."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.data import ShardError, run_on_ray
from cluster.following import Following
from cluster.progress import Progress
from cluster.session import SessionConfig, close_session, ensure_session
from filtering import InputError
from filtering.files import write_json
from filtering.shards import LIVE, Marker, digest_of_markers, run_local
from helpers.files import files_under
from helpers.paths import PYTHONPATH
from helpers.ray_work import Counting, MakeUpper, Overlapping, Worried, wait_until

SHARDS = 6


def write_sources(folder: Path, shards: int = SHARDS) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    sources = [folder / f"{shard:05}.parquet" for shard in range(shards)]
    for shard, source in enumerate(sources):
        pq.write_table(pa.table({"caption": [f"caption {shard} {row}" for row in range(5 + shard)]}), source)
    return sources


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)  # workers import `Upper` from helpers.ray_work
        yield
        close_session()


CONFIG = SessionConfig(num_cpus=2, object_store_mb=100)


def test_ray_and_local_write_the_same_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sources = write_sources(tmp_path / "in")
    make = MakeUpper(tmp_path / "log")
    local = run_local(make, sources, tmp_path / "local", fingerprint="f")
    for workers in (1, 2, 4):
        config = SessionConfig(num_cpus=2, object_store_mb=100, data_workers=workers)
        out = tmp_path / f"ray{workers}"
        assert run_on_ray(config)(make, sources, out, fingerprint="f", label="upper") == local
        assert files_under(out) == files_under(tmp_path / "local")
    assert digest_of_markers(local) == digest_of_markers(reversed(local))
    import ray  # which reads its settings when it is imported: not before the session

    assert ray.util.list_named_actors(all_namespaces=True) == []  # Ray Data's own are for clusters
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith(f"upper: {5 * SHARDS + 15}/{5 * SHARDS + 15} rows, ")
    # Ray itself keeps quiet, up to a line of its core about the actors that Ray Data makes.
    assert [
        line for line in err.splitlines() if not line.startswith(("upper: ", "Ray: ")) and "core_worker.cc" not in line
    ] == []


def test_a_mistake_arrives_as_it_was_raised_and_finished_shards_stay(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in")
    pq.write_table(pa.table({"caption": ["mistake"]}), sources[3])
    config = SessionConfig(num_cpus=2, object_store_mb=100, data_workers=1)
    runner, make = run_on_ray(config), MakeUpper(tmp_path / "log")
    with pytest.raises(InputError, match=r"^caption: 'mistake' cannot be used; remove it$"):
        runner(make, sources, tmp_path / "out", fingerprint="f", label="upper")
    done = [int(path.name.split(".")[0]) for path in (tmp_path / "out" / "_done").glob("*.json")]
    assert done
    assert 3 not in done
    pq.write_table(pa.table({"caption": ["caption 3 0"]}), sources[3])
    runner(make, sources, tmp_path / "out", fingerprint="f", label="upper")
    ran = (tmp_path / "log").read_text().splitlines()
    assert set(ran) == {f"caption {shard} 0" for shard in range(SHARDS)}
    for shard in done:  # one that was in flight when the mistake arrived may run again
        assert ran.count(f"caption {shard} 0") == 1


def test_a_bug_names_the_shard(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", 2)
    pq.write_table(pa.table({"caption": ["bug"]}), sources[1])
    told = r"(?s)^shard 00001 failed: RuntimeError: a bug\nTraceback \(most recent call last\).*in __call__"  # with the notes
    with pytest.raises(ShardError, match=told) as caught:
        run_on_ray(CONFIG)(MakeUpper(tmp_path / "log"), sources, tmp_path / "out", fingerprint="f", label="upper")
    assert str(caught.value) == "shard 00001 failed: RuntimeError: a bug"


def test_a_full_disk_of_a_worker_is_one_line(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", 2)
    pq.write_table(pa.table({"caption": ["full"]}), sources[1])
    with pytest.raises(InputError, match=r"^shard 00001: No space left on device; free some space, then run the same command"):
        run_on_ray(CONFIG)(MakeUpper(tmp_path / "log"), sources, tmp_path / "out", fingerprint="f", label="upper")


def test_a_worker_has_several_shards_in_work_and_the_next_begins_as_soon_as_one_ends(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in")
    (tmp_path / "begun").mkdir()
    config = SessionConfig(num_cpus=2, object_store_mb=100, data_workers=1)
    make = partial(Overlapping, tmp_path / "begun", SHARDS)
    markers = run_on_ray(config)(make, sources, tmp_path / "out", fingerprint="f", label="overlap", at_once=2)
    assert [marker.shard for marker in markers] == [source.stem for source in sources]
    told = [tuple(map(int, path.read_text().split())) for path in (tmp_path / "begun").iterdir()]
    assert len({(process, work) for process, work, _, _ in told}) == 1, "the shards did not share one work"
    assert {workers for _, _, workers, _ in told} == {1}
    assert max(in_work for *_, in_work in told) == 2


def test_the_progress_counts_what_shards_in_work_have_done(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.progress.SECONDS_BETWEEN_LINES", 0.0)
    sources = write_sources(tmp_path / "in", 2)  # of 5 and 6 rows
    (tmp_path / "seen").touch()
    run_local(partial(Counting, tmp_path / "seen"), sources[:1], tmp_path / "out", fingerprint="f")
    (tmp_path / "seen").unlink()

    def describe(counts: Mapping[str, int]) -> str:
        if counts["letters"] == 1300:
            (tmp_path / "seen").touch()
        return f"{counts['letters']} letters"

    run = run_on_ray(CONFIG)
    run(partial(Counting, tmp_path / "seen"), sources, tmp_path / "out", fingerprint="f", label="count", describe=describe)
    lines = capfd.readouterr().err.splitlines()
    assert any(line.startswith("count: 8/11 rows, ") and line.endswith(", 1300 letters") for line in lines)
    assert lines[-1].startswith("count: 11/11 rows, ")
    assert lines[-1].endswith(", 2000 letters")


def test_workers_know_how_many_they_are_and_what_they_warn_of_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = SessionConfig(num_cpus=2, object_store_mb=100, data_workers=2)
    sources = write_sources(tmp_path / "in", 3)
    markers = run_on_ray(config)(Worried, sources, tmp_path / "out", fingerprint="f", label="worry")
    assert [marker.counts["workers"] for marker in markers] == [2, 2, 2]
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("worry: warning: the network is down after ")
    assert list((tmp_path / "out" / "_work").iterdir()) == []


def test_a_shard_may_take_longer_than_ray_data_waits_for_any_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_session(CONFIG)
    import ray.data

    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)
    sources = write_sources(tmp_path / "in", 1)
    run = run_on_ray(CONFIG)
    (marker,) = run(MakeUpper(tmp_path / "log", 1.5), sources, tmp_path / "out", fingerprint="f", label="long")
    assert marker.counts["rows"] == 5


def test_no_cpu_for_a_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.data.START_SECONDS", 1)
    monkeypatch.setattr("cluster.data.LOOK_SECONDS", 0.5)
    config = SessionConfig(num_cpus=2, object_store_mb=100, data_label="role=nobody")
    with pytest.raises(InputError, match=r"^session.data_label: no Ray node with the label role=nobody had a CPU to spare for"):
        run_on_ray(config)(
            MakeUpper(tmp_path / "log"), write_sources(tmp_path / "in"), tmp_path / "out", fingerprint="f", label=""
        )


def test_counts_that_come_and_go_never_take_the_progress_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.progress.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("cluster.following.SECONDS_BETWEEN_LOOKS", 0.005)
    seen: list[tuple[int, str]] = []
    live = tmp_path / "_work" / "00001" / LIVE

    class Shown(Progress):
        def update(self, done: int, note: str = "") -> None:
            super().update(done, note)
            seen.append((done, note))

    def shows(done: int, note: str) -> None:
        wait_until(lambda: seen[-1:] == [(done, note)])

    rows = {"00000": 10, "00001": 10, "00002": 10}
    before = [Marker(shard="00000", fingerprint="", counts={"ok": 9}, files={})]
    with (
        Shown("count", total=30, unit="rows", start=10, stream=io.StringIO()) as progress,
        Following(progress, tmp_path, rows, before, lambda counts: f"{counts['ok']} ok") as following,
    ):
        shows(10, "9 ok")
        write_json(live, {"rows": 4, "ok": 3})
        shows(14, "12 ok")
        looks = len(seen)
        live.write_text('{"rows": 7, "o')  # torn
        wait_until(lambda: len(seen) > looks + 1)
        shows(14, "12 ok")
        write_json(tmp_path / "_work" / "00007" / LIVE, {"rows": 9, "ok": 9})  # a stranger
        write_json(live, {"rows": 8, "ok": 7})
        shows(18, "16 ok")
        looks = len(seen)
        live.unlink()  # a moment before its end is heard of
        wait_until(lambda: len(seen) > looks + 1)
        shows(18, "16 ok")
        looks = len(seen)
        write_json(live, {"rows": 2, "ok": 2})  # its worker was killed, another counts anew
        wait_until(lambda: len(seen) > looks + 1)
        shows(18, "16 ok")
        write_json(live, {"rows": 99, "ok": 10})  # not yet removed when the shard is known to be finished
        shows(20, "19 ok")
        following.add(Marker(shard="00001", fingerprint="", counts={"ok": 10}, files={}))
        following.add(Marker(shard="00002", fingerprint="", counts={"ok": 1}, files={}))
    assert seen[-1] == (30, "20 ok")
    told = [(done, int(note.split()[0])) for done, note in seen]
    assert told == sorted(told)


DRIVER = """
import sys
from pathlib import Path
from cluster.data import run_on_ray
from cluster.session import SessionConfig
from helpers.ray_work import MakeUpper

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
sources = sorted((folder / "in").glob("*.parquet"))
runner = run_on_ray(SessionConfig(num_cpus=2, object_store_mb=100, data_workers=2))
markers = runner(MakeUpper(folder / "log", seconds), sources, folder / "out", fingerprint="f", label="upper")
from filtering.shards import digest_of_markers
print(digest_of_markers(markers), "ray" in sys.modules)
"""


@pytest.mark.slow
def test_a_killed_driver_loses_no_finished_shard(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in")
    expected = digest_of_markers(run_local(MakeUpper(tmp_path / "ignored"), sources, tmp_path / "local", fingerprint="f"))
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    driver = subprocess.Popen([*command, "1"], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while len(list((tmp_path / "out" / "_done").glob("*.json"))) < 2:
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    finished = sorted(path.name.split(".")[0] for path in (tmp_path / "out" / "_done").glob("*.json"))
    assert 2 <= len(finished) < SHARDS

    def run() -> list[str]:
        result = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, check=True)
        return result.stdout.split()

    assert run() == [expected, "True"]
    ran = (tmp_path / "log").read_text().splitlines()
    for shard in finished:
        assert ran.count(f"caption {int(shard)} 0") == 1
    assert run() == [expected, "False"]  # nothing left to do: Ray is not even imported


def test_estimates_give_way_to_the_rows_that_were_there(tmp_path: Path) -> None:
    stream = io.StringIO()
    before = [Marker(shard="00000", fingerprint="", counts={"links": 9}, files={})]
    with (
        Progress("read", total=321, unit="rows", start=9, stream=stream) as progress,
        Following(progress, tmp_path, {"00000": 10, "00001": 111, "00002": 200}, before, None) as following,
    ):
        following.add(Marker(shard="00001", fingerprint="", counts={"links": 120}, files={}))
        following.add(Marker(shard="00002", fingerprint="", counts={"links": 191}, files={}))
    assert (progress.done, progress.total) == (320, 320)
    assert stream.getvalue().startswith("read: 320/320 rows, ")
