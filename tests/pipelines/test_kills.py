"""`kill -9` in the middle of the work: the next start goes on where it stopped, and ends with the same bytes."""

import json
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from helpers.chain import kill_when, processes_of_session, run_well, summary, wait_for
from helpers.files import count_lines, files_under

DATA = ("corpus/kept/*.parquet", "corpus/dropped/*.parquet", "corpus/entities.parquet", "shards/*.tar")
WORKERS, CONCURRENCY = 2, 2
SLOW_DOWNLOAD = (
    "tracking.enabled=false",
    "download.shard_size=20",
    f"download.fetch.concurrency={CONCURRENCY}",
    f"session.data_workers={WORKERS}",
)
STEPS, EVERY = 24, 6
TRAINING = (
    "tracking.enabled=false",
    "methods=[maskclip]",
    f"method_settings.clip.phases.0.steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    "evaluate.datasets=[voc21]",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_well("download", folder, *SLOW_DOWNLOAD)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False], ids=["process group", "driver alone"])
def test_a_kill_during_the_download_fetches_nothing_twice(undisturbed: Path, tmp_path: Path, group: bool) -> None:
    run = tmp_path / "run"
    requests = run / "world" / "requests.log"
    process = kill_when(lambda: count_lines(requests) > 70, "download", run, *SLOW_DOWNLOAD, group=group)
    before = Counter(requests.read_text().splitlines())
    assert not (run / "download.done.json").exists()
    complete = sorted((run / "shards").glob("[0-9]*.parquet"))

    run_well("download", run, *SLOW_DOWNLOAD)

    after = Counter(requests.read_text().splitlines()) - before
    assert after, "the kill came too late to test anything"
    faults = json.loads((run / "world" / "web" / "faults.json").read_text())
    healing = {path for path, fault in faults.items() if fault["fault"] in ("heal", "drip")}
    for shard in complete:
        assert not (after.keys() - healing) & {urlsplit(url).path for url in pq.read_table(shard)["url"].to_pylist()}
    # Of the shards that were under way, only what was in flight and what may heal is asked for again.
    final = before.keys() & after.keys() - healing
    assert len(final) <= WORKERS * CONCURRENCY, sorted(final)
    assert files_under(run, *DATA) == files_under(undisturbed, *DATA)
    digests = [summary(folder)["stages"]["download"]["digest"] for folder in (run, undisturbed)]
    assert digests[0] == digests[1]
    wait_for(lambda: not processes_of_session(process), lambda: True, f"the killed run's processes to end: {process}")


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False], ids=["process group", "driver alone"])
def test_a_kill_during_training_goes_on_from_the_last_checkpoint(tmp_path: Path, group: bool) -> None:
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    run_well("download", killed, *TRAINING)
    run_well("train", straight, *TRAINING)
    log = killed / "train" / "clip" / "metrics.jsonl"
    registered = killed / "train" / "clip" / "checkpoints" / "checkpoint_manager_snapshot.json"
    process = kill_when(lambda: registered.exists() and count_lines(log) > EVERY, "train", killed, *TRAINING, group=group)
    wait_for(lambda: not processes_of_session(process, "RayTrainWorker"), lambda: True, "the workers to follow their driver")
    before = log.read_text().splitlines()
    assert len(before) < STEPS, "the kill came too late to test anything"

    output = run_well("full", killed, *TRAINING)

    assert "download: skipped" in output
    after = log.read_text().splitlines()
    assert [json.loads(line)["step"] for line in after] == list(range(1, STEPS + 1))
    # A step that is taken again has another speed in its line: the lines up to the checkpoint are the old ones.
    kept = [old for old, new in zip(before, after, strict=False) if old == new]
    assert kept == before[: len(kept)]
    assert len(kept) in range(EVERY, STEPS, EVERY)
    digests = [summary(folder)["stages"]["train"]["methods"]["clip"] for folder in (killed, straight)]
    assert digests[0] == digests[1]
    wait_for(lambda: not processes_of_session(process), lambda: True, f"the killed run's processes to end: {process}")
