"""A training on a cluster of several Ray nodes that loses a worker, a node and its driver, and ends as an undisturbed one."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster.checkpoints import last
from helpers.chain import SMOKE, command, run_well, wait_for
from helpers.nodes import Nodes, nodes
from helpers.paths import REPO
from helpers.tracked import client_of, runs_of
from owseg.step_log import read_log

FAILED = re.compile(r"train clip: rank .* failed: ")
STEPS, EVERY, WORKERS = 36, 6, 4
HOUR = 3600.0


class Training(NamedTuple):
    """A training that is disturbed."""

    config: str
    steps: int
    every: int
    """Steps between checkpoints."""
    settings: tuple[str, ...]

    @property
    def all_settings(self) -> tuple[str, ...]:
        spread = (f"train.workers={WORKERS}", f"train.checkpoint_every={self.every}", "train.log_every=1")
        return ("methods=[maskclip]", *spread, "train.recovery_seconds=300", *self.settings)


SMALL = Training(
    SMOKE, STEPS, EVERY, (f"method_settings.clip.phases.0.steps={STEPS}", "method_settings.clip.optim.batch_size=12")
)
DEMO = Training("configs/demo.yaml", 800, 50, ("train.threads=1",))
"""As `make demo` pretrains its CLIP."""


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with image shards in it, to be copied."""
    return download(SMALL, tmp_path_factory.mktemp("downloaded") / "run")


@pytest.fixture(scope="module")
def undisturbed(downloaded: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The steps of a training that nothing happens to."""
    return train_undisturbed(SMALL, copy_of(downloaded, tmp_path_factory.mktemp("undisturbed") / "run"))


def download(training: Training, folder: Path) -> Path:
    run_well("download", folder, *training.all_settings, config=training.config, deadline=HOUR)
    return folder


def train_undisturbed(training: Training, folder: Path) -> list[dict[str, Any]]:
    """The steps of a training in one process, on this machine's own Ray."""
    alone = ("train.workers=1", "train.engine=torch", "tracking.enabled=false")
    run_well("train", folder, *training.all_settings, *alone, config=training.config, deadline=HOUR)
    return steps_of(folder)


def copy_of(run: Path, folder: Path) -> Path:
    """Another run with the same shards, which may train with another engine."""
    return Path(shutil.copytree(run, folder, ignore=shutil.ignore_patterns("config.yaml", "mlflow*", "mlartifacts")))


def steps_of(run: Path) -> list[dict[str, Any]]:
    return read_log(run / "train" / "clip" / "metrics.jsonl")


def last_step(run: Path) -> int:
    try:
        return int(steps_of(run)[-1]["step"])
    except (IndexError, json.JSONDecodeError):  # it is being written anew
        return 0


@contextmanager
def driver(cluster: Nodes, run: Path, *settings: str, training: Training = SMALL) -> Iterator[subprocess.Popen[bytes]]:
    """The train verb on the cluster; what it says is added to `run.log`."""
    settings = (*training.all_settings, *settings, f"session.address={cluster.address}")
    verb = command("train", run, *settings, config=training.config)
    with run.with_suffix(".log").open("a") as output:
        process = subprocess.Popen(
            verb, cwd=REPO, env=cluster.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Watched:
    """A run whose driver must live on while something happens to the cluster."""

    def __init__(self, run: Path, process: subprocess.Popen[bytes], training: Training = SMALL) -> None:
        self.run, self.process, self.training = run, process, training

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        said = self.run.with_suffix(".log")
        wait_for(ready, lambda: self.process.poll() is None, f"{what}; {said}:\n{said.read_text()[-3000:]}")

    def until_step(self, step: int) -> None:
        self.wait(lambda: last_step(self.run) >= step, f"step {step}")

    def recover(self, what: str, harm: Callable[[], None], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Do harm and wait until a step is logged that was not before; tells how long that took."""
        before, began = last_step(self.run), time.monotonic()
        assert before < self.training.steps - self.training.every, "it came too late to test anything"
        harm()
        meanwhile()
        self.until_step(before + 1)
        print(f"{what} at step {before}: the next step after {time.monotonic() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a busy machine each start of workers takes a minute
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_worker_a_node_and_the_driver_are_lost(
    engine: str, downloaded: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    lose_one_after_another(SMALL, copy_of(downloaded, tmp_path / "run"), engine, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_training_of_the_demo_s_size(tmp_path: Path) -> None:
    run = download(DEMO, tmp_path / "run")
    undisturbed = train_undisturbed(DEMO, copy_of(run, tmp_path / "undisturbed"))
    lose_one_after_another(DEMO, copy_of(run, tmp_path / "disturbed"), "deepspeed", undisturbed)


def lose_one_after_another(training: Training, run: Path, engine: str, undisturbed: list[dict[str, Any]]) -> None:
    """A worker, a node and the driver, which goes on with half the workers. Tells how long each took."""
    setting = f"train.engine={engine}"
    said = run.with_suffix(".log")
    with nodes() as cluster:
        _, second = cluster.add(1), cluster.add(1)  # two workers fit on each
        with driver(cluster, run, setting, training=training) as process:
            watched = Watched(run, process, training)
            watched.until_step(2 * training.every - 2)
            watched.recover("a worker killed", lambda: os.kill(cluster.workers()[0], signal.SIGKILL))

            def join_later() -> None:
                watched.wait(lambda: "2 fit by now" in said.read_text(), "a line on what is waited for")
                cluster.add(1)

            watched.recover("a node killed, another one joined later", lambda: cluster.kill(second), join_later)
            process.kill()
            process.wait()
        began = time.monotonic()
        wait_for(lambda: not cluster.workers(), lambda: True, "the workers to follow their driver")
        before = last_step(run)
        assert before < training.steps - training.every, "the driver was killed too late to test anything"
        with driver(cluster, run, setting, f"train.workers={WORKERS // 2}", training=training) as process:
            Watched(run, process).until_step(before + 1)
            print(f"the driver killed at step {before}: the next step after {time.monotonic() - began:.0f} s")
            assert process.wait(timeout=1800) == 0, said.read_text()[-3000:]

    told = said.read_text()
    assert "failed: a worker process was killed" in told
    assert len(FAILED.findall(told)) == 2  # the second by a machine that died, or that cannot be reached
    assert "Traceback" not in told
    ends_as(run, undisturbed)


def ends_as(run: Path, undisturbed: list[dict[str, Any]]) -> None:
    """Every step once in the log and in MLflow, with the losses of the training that nothing happened to."""
    steps, every = steps_of(run), [line["step"] for line in undisturbed]
    assert [line["step"] for line in steps] == every == list(range(1, len(every) + 1))
    apart = [abs(line["loss/total"] / plain["loss/total"] - 1) for line, plain in zip(steps, undisturbed, strict=True)]
    print(
        f"losses apart: {max(apart[:STEPS]):.0e} at most in {STEPS} steps, {max(apart):.0e} in all, {apart[-1]:.0e} at the end"
    )
    assert max(apart[:STEPS]) < 1e-4
    assert max(apart) < 0.05, "rounding grows from step to step, but is no other training"
    assert logged_steps(run) == every


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a busy machine each start of workers takes a minute
def test_the_head_is_lost_and_the_job_submitted_again(
    downloaded: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The driver ends in one line; on another cluster the same command goes on."""
    run = copy_of(downloaded, tmp_path / "run")
    said = run.with_suffix(".log")
    with nodes() as cluster:
        cluster.add(2)
        with driver(cluster, run) as process:
            Watched(run, process).until_step(EVERY + 4)
            cluster.kill(cluster.processes[0].pid)
            began = time.monotonic()
            assert process.wait(timeout=300) == 2, said.read_text()[-3000:]
            print(f"the head killed: the driver ended after {time.monotonic() - began:.0f} s")
    told = said.read_text()
    assert "Traceback" not in told
    assert sum(line.startswith("error: ") for line in told.splitlines()) == 1
    began, before = time.monotonic(), last_step(run)
    with nodes() as cluster:
        cluster.add(2)
        with driver(cluster, run) as process:
            Watched(run, process).until_step(before + 1)
            print(f"a new cluster: the next step {time.monotonic() - began:.0f} s after it was begun")
            assert process.wait(timeout=300) == 0, said.read_text()[-3000:]
    ends_as(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a busy machine each start of workers takes a minute
def test_an_elastic_training_shrinks_and_grows_with_the_cluster(
    downloaded: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    """2..6 processes for batches of 12: four to begin with, two when a node is gone, then half of what comes is of no use."""
    run = copy_of(downloaded, tmp_path / "run")
    said = run.with_suffix(".log")
    with nodes() as cluster:
        _, second = cluster.add(1), cluster.add(1)  # two workers fit on each
        with driver(cluster, run, "train.workers=2..6", f"train.checkpoint_every={EVERY // 2}") as process:
            watched = Watched(run, process)
            watched.until_step(EVERY)
            assert len(cluster.workers()) == 4
            watched.recover("a node killed, for good", lambda: cluster.kill(second))
            assert len(cluster.workers()) == 2
            cluster.add(2)
            watched.wait(lambda: "goes on with 6 training processes, 2 before" in said.read_text(), "the line on growth")
            assert process.wait(timeout=300) == 0, said.read_text()[-3000:]
    assert "goes on with 2 training processes, 4 before" in said.read_text()
    ends_as(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a busy machine each start of workers takes a minute
def test_a_node_that_is_taken_back_leaves_a_checkpoint_in_time(downloaded: Path, tmp_path: Path) -> None:
    """The notice alone is a checkpoint: there is no other before the last step. The restart is no failure."""
    run = copy_of(downloaded, tmp_path / "run")
    said = run.with_suffix(".log")
    settings = ("train.engine=torch", "train.checkpoint_every=9999", "train.max_failures=0", "tracking.enabled=false")
    with nodes() as cluster:
        _, second = cluster.add(1), cluster.add(1)
        with driver(cluster, run, *settings, "method_settings.clip.phases.0.steps=600") as process:
            watched = Watched(run, process)
            watched.until_step(2)
            cluster.drain(second, seconds=15)
            watched.wait(lambda: "are about to be taken back" in said.read_text(), "the line on the notice")
            watched.wait(lambda: last(run / "train" / "clip" / "checkpoints") is not None, "the checkpoint")
            cluster.add(1)
            watched.wait(lambda: not cluster.workers(second), "the node to be left")
            cluster.kill(second)
            assert process.wait(timeout=300) == 0, said.read_text()[-3000:]
    assert not FAILED.findall(said.read_text())
    assert [line["step"] for line in steps_of(run)] == list(range(1, 601))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a busy machine each start of workers takes a minute
def test_a_machine_that_runs_out_of_memory_is_told(downloaded: Path, tmp_path: Path) -> None:
    """Ray ends workers where the machine has no memory left: here it takes all but a little for used."""
    run = copy_of(downloaded, tmp_path / "run")
    said = run.with_suffix(".log")
    with nodes() as cluster:
        full = memory_in_use() + 0.02  # two workers take three times as much
        cluster.add(2, memory_usage_threshold=f"{full:.3f}", memory_monitor_refresh_ms="250")
        with driver(cluster, run, "train.workers=2", "train.max_failures=1", "tracking.enabled=false") as process:
            assert process.wait(timeout=600) == 2, said.read_text()[-3000:]
    told = said.read_text()
    assert "Traceback" not in told
    assert re.search(r"error: .*its machine ran out of memory; .*train\.workers.*run the same command again", told), told[
        -2000:
    ]


def memory_in_use() -> float:
    """The share of this machine's memory, 0..1."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    there, free = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    return 1 - free / there


def logged_steps(run: Path) -> list[int]:
    """The steps whose loss MLflow has, in order, over all of its runs."""
    client, found = client_of(run), []
    for one in runs_of(run).values():
        found += [point.step for point in client.get_metric_history(one.info.run_id, "train/loss/total")]
    return sorted(found)
