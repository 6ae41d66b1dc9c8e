"""Lineage on the chain that Ray trained: its steps are those of the batches, also in a bucket, and forgetting is for ever."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.chain import Chain, run_well, summary
from helpers.s3 import S3, s3_server
from owseg.encoders import PRETRAIN
from owseg.exposure import keys_of_step
from pipelines import compare, lineage
from pipelines.app.read_run import config_of
from pipelines.app.resolve import resolve_encoder_paths
from pipelines.train import job_of
from storage.client import StorageConfig, Store

METHOD = "tcl"


def batches(run: Path) -> list[list[str]]:
    """The keys of each step, as the batches have them."""
    config = config_of(run)
    encoder = replace(resolve_encoder_paths(config), pretrained=PRETRAIN)
    job = job_of(config, config.method_settings.tcl, encoder, run)
    return [keys_of_step(job, step) for step in range(job.steps)]


def answer_of(key: str, run: object, capsys: pytest.CaptureFixture[str], *settings: str) -> dict[str, Any]:
    capsys.readouterr()
    assert lineage.main([key, "--json", f"run_dir={run}", *settings]) == 0
    [answer] = json.loads(capsys.readouterr().out)
    found: dict[str, Any] = answer
    return found


def test_steps_are_those_of_the_batches(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    shown = batches(chain.folder)
    key = shown[1][2]
    answer = answer_of(key, chain.folder, capsys)
    told = {saw["training"]: saw for saw in answer["trainings"]}[f"train/{METHOD}"]
    assert told["shown"] == [[step, at] for step, keys in enumerate(shown) for at, one in enumerate(keys) if one == key]
    assert {one["steps"]: one["times"] for one in told["checkpoints"]} == {
        one["steps"]: sum(step < one["steps"] for step, _ in told["shown"]) for one in told["checkpoints"]
    }
    assert max(one["steps"] for one in told["checkpoints"]) == len(shown)


@pytest.mark.slow
def test_what_is_forgotten_is_in_no_later_shard_or_batch(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(chain.folder, run)
    key = batches(run)[0][0]
    (tmp_path / "out.txt").write_text(key)
    assert lineage.main(["--forget", str(tmp_path / "out.txt"), f"run_dir={run}"]) == 0
    run_well("train", run)
    found = summary(run)["stages"]
    assert found["filter"]["dropped"]["forgotten"] == 1
    assert found["download"]["links"] == chain.summary["stages"]["download"]["links"] - 1
    assert found["download"]["asked"] == 0
    assert all(key not in keys for keys in batches(run))
    answer = answer_of(key, run, capsys)
    assert (answer["places"], answer["trainings"]) == ([], [])
    aside = {saw["training"] for saw in answer["before"][0]["answer"]["trainings"]}
    assert f"train/before/{METHOD}.1" in aside
    other = batches(run)[0][0]
    told = {saw["training"]: saw for saw in answer_of(other, run, capsys)["trainings"]}
    assert told[f"train/{METHOD}"]["shown"][0] == [0, 0]
    assert told[f"train/before/{METHOD}.1"]["unknown"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("bucket")
        yield server


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_runs_in_a_bucket_are_asked_forget_and_are_compared(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, scratch = "s3://bucket/runs/one", f"storage.scratch={tmp_path / 'scratch'}"
    store = Store(url, StorageConfig(scratch=str(tmp_path / "scratch")))
    for file in sorted(path for path in chain.folder.rglob("*") if path.is_file() and path.name != ".lock"):
        store.put(file.relative_to(chain.folder).as_posix(), file)
    key = batches(chain.folder)[0][0]
    here, there = answer_of(key, chain.folder, capsys), answer_of(key, url, capsys, scratch)
    assert there["places"][0]["tar"].startswith(url)
    assert [saw["shown"] for saw in there["trainings"]] == [saw["shown"] for saw in here["trainings"]]
    assert compare.main([str(chain.folder), url, scratch, "--out", str(tmp_path / "page.html")]) == 0
    assert "average +0.0 (0.0..0.0), not larger than noise" in capsys.readouterr().out
    (tmp_path / "out.txt").write_text(key)
    assert lineage.main(["--forget", str(tmp_path / "out.txt"), f"run_dir={url}", scratch]) == 0
    assert key in (store.get("forgotten.txt") or b"").decode()
    assert answer_of(key, url, capsys, scratch)["forgotten"]
