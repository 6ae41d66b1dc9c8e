"""Ray Data and `run_local` write the same bytes, and a killed driver loses nothing that was finished."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.data import ShardError, run_on_ray
from cluster.session import SessionConfig, close_session
from filtering.stage import InputError, digest_of_markers, run_local

SHARDS = 6


class Upper:
    """Writes each caption in capitals; refuses a row "mistake", breaks on a row "bug". Says in `log` which shards it ran."""

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, table: pa.Table, scratch: Path) -> dict[str, int]:
        captions = table["caption"].to_pylist()
        time.sleep(self.seconds)
        if "mistake" in captions:
            raise InputError("caption: 'mistake' cannot be used; remove it")
        if "bug" in captions:
            raise RuntimeError("a bug")
        (scratch / "kept").mkdir(exist_ok=True)
        (scratch / "kept" / f"{captions[0]}.txt").write_text("\n".join(caption.upper() for caption in captions))
        with self.log.open("a") as log:
            log.write(f"{captions[0]}\n")
        return {"rows": len(captions), "letters": sum(map(len, captions))}


class MakeUpper:
    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self) -> Upper:
        return Upper(self.log, self.seconds)


def write_sources(folder: Path, shards: int = SHARDS) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    sources = [folder / f"{shard:05}.parquet" for shard in range(shards)]
    for shard, source in enumerate(sources):
        pq.write_table(pa.table({"caption": [f"caption {shard} {row}" for row in range(5 + shard)]}), source)
    return sources


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import `Upper` from here
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
        assert tree(out) == tree(tmp_path / "local")
    assert digest_of_markers(local) == digest_of_markers(reversed(local))
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith(f"upper: {5 * SHARDS + 15}/{5 * SHARDS + 15} rows, ")
    # Ray itself keeps quiet, up to a line of its core about the actors that Ray Data makes.
    assert [line for line in err.splitlines() if not line.startswith("upper: ") and "core_worker.cc" not in line] == []


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
    with pytest.raises(ShardError, match=r"(?s)^shard 00001 failed:\nTraceback.*RuntimeError: a bug"):
        run_on_ray(CONFIG)(MakeUpper(tmp_path / "log"), sources, tmp_path / "out", fingerprint="f", label="upper")


DRIVER = """
import sys
from pathlib import Path
from cluster.data import run_on_ray
from cluster.session import SessionConfig
from test_cluster_data import MakeUpper

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
sources = sorted((folder / "in").glob("*.parquet"))
runner = run_on_ray(SessionConfig(num_cpus=2, object_store_mb=100, data_workers=2))
markers = runner(MakeUpper(folder / "log", seconds), sources, folder / "out", fingerprint="f", label="upper")
from filtering.stage import digest_of_markers
print(digest_of_markers(markers), "ray" in sys.modules)
"""


@pytest.mark.slow
def test_a_killed_driver_loses_no_finished_shard(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in")
    expected = digest_of_markers(run_local(MakeUpper(tmp_path / "ignored"), sources, tmp_path / "local", fingerprint="f"))
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
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
