"""Data work starts no GPU node, and GPU work no data node: what asks for resources carries a label, and counts right."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import InputError
from cluster.capacity import Growth, nodes_to_come
from cluster.data import run_on_ray, shards_at_once, workers_for
from cluster.evaluate import Contender, _await_gpu, evaluate, evaluators
from cluster.session import SessionConfig, close_session
from cluster.train import train
from cluster.train_config import RayTrainJob, TrainConfig
from helpers import tiny
from helpers.autoscaled import autoscaled
from helpers.ray_work import MakeUpper
from owseg import InputError as MistakeOfEvaluation
from owseg.evaluation.protocols import EvaluateConfig

NODES = [
    {"Alive": True, "Resources": {}, "Labels": {"role": "head"}},
    {"Alive": True, "Resources": {"CPU": 32.0}, "Labels": {"role": "data"}},
    {"Alive": True, "Resources": {"CPU": 32.0}, "Labels": {"role": "data"}},
    {"Alive": True, "Resources": {"CPU": 96.0, "GPU": 8.0}, "Labels": {"role": "train"}},
]
SHARED = {"address": "head:6379", "data_label": "role=data", "train_label": "role=train"}


@pytest.mark.parametrize(
    ("settings", "shards", "expected"),
    [
        (SHARED, 1000, 64),  # not the 96 cores of the GPU node
        (SHARED, 5, 5),
        ({"address": "head:6379"}, 1000, 160),
        (SHARED | {"data_workers": 256}, 1000, 256),  # the autoscaler is to bring the rest
        ({"data_workers": 1000}, 10_000, 320),  # this machine's own Ray cannot grow
        ({"data_label": "role=nobody"}, 1000, 1),
    ],
)
def test_data_workers_go_by_the_cores_that_they_may_use(settings: dict[str, Any], shards: int, expected: int) -> None:
    assert workers_for(shards, NODES, SessionConfig(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "cores", "expected"),
    [
        ({}, [8.0], 4),
        ({}, [3.0, 1.0, 0.0], 2),
        ({"data_workers": 6}, [8.0], 6),
    ],
)
def test_workers_that_keep_two_cores_busy_are_half_as_many(settings: dict[str, Any], cores: list[float], expected: int) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in cores]
    assert workers_for(1000, nodes, SessionConfig(**settings), 2) == expected


@pytest.mark.parametrize(("shards", "workers", "expected"), [(2, 2, 1), (4, 2, 2), (5, 2, 3), (1000, 2, 3), (1, 1, 1)])
def test_no_worker_takes_more_than_its_share_of_few_shards(shards: int, workers: int, expected: int) -> None:
    assert shards_at_once(shards, workers, 3) == expected


@pytest.mark.parametrize(
    ("use_gpu", "label", "nodes", "expected"),
    [
        (True, "role=train", NODES, (8, True)),
        (False, "role=train", NODES, (96, False)),  # not the 160 of all: 64 workers more would start GPU nodes
        (False, "", NODES, (160, False)),
        (True, "", NODES[:3], (64, False)),  # on this machine's own Ray without a GPU
        (False, "role=train", NODES[:3], (1, False)),  # one that waits starts the first node
    ],
)
def test_evaluators_go_by_the_nodes_that_they_may_use(
    use_gpu: bool, label: str, nodes: list[dict[str, Any]], expected: tuple[int, bool]
) -> None:
    assert evaluators(nodes, EvaluateConfig(use_gpu=use_gpu), SessionConfig(train_label=label)) == expected


def test_a_cluster_without_a_gpu_is_refused_for_evaluation_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to be scored on CPUs, on the nodes that are for GPUs."""
    asked: list[Any] = []

    def nothing_comes(*given: Any, **_: Any) -> Growth:
        asked.append(given)
        return Growth(0, "train_gpu: no capacity")

    monkeypatch.setattr("cluster.evaluate.await_room", nothing_comes)
    with pytest.raises(
        MistakeOfEvaluation, match=r"^evaluate.use_gpu: .* no GPU on nodes with role=train; .*: train_gpu: no capacity$"
    ):
        _await_gpu({"role": "train"})
    assert asked == [(1, {"GPU": 1.0, "CPU": 0.5}, {"role": "train"}, "evaluation on a GPU")]


@pytest.fixture
def cluster() -> Iterator[SessionConfig]:
    """A head without CPUs, and an autoscaler for two kinds of nodes."""
    close_session()
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    types = {
        "data_cpu": {"resources": {"CPU": 2}, "labels": {"role": "data"}, "max_workers": 2},
        "train_gpu": {"resources": {"CPU": 2}, "labels": {"role": "train"}, "max_workers": 2},
    }
    try:
        with autoscaled(folder, types) as address:
            yield SessionConfig(address=address, data_label="role=data", train_label="role=train")
            close_session()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def roles() -> Counter[str]:
    import ray

    return Counter(node["Labels"]["role"] for node in ray.nodes() if node["Alive"])


def placed() -> list[tuple[str, bool, str]]:
    """All actors that ever ran: class, whether it asks for resources, and the role of its node."""
    import ray
    from ray.core.generated import gcs_pb2

    at = {node["NodeID"]: node["Labels"].get("role", "") for node in ray.nodes()}
    accessor = ray._private.state.state._connect_and_get_accessor()
    actors = [gcs_pb2.ActorTableData.FromString(data) for data in accessor.get_actor_table(None, None)]
    return [
        (actor.class_name, bool({"CPU", "GPU"} & set(actor.required_resources)), at.get(actor.address.node_id.hex(), ""))
        for actor in actors
    ]


@pytest.mark.slow
def test_an_autoscaler_starts_the_nodes_that_work_is_for(
    cluster: SessionConfig, tmp_path: Path, contenders: list[Contender], voc: EvaluateConfig
) -> None:
    sources = []
    for number in range(24):
        sources.append(tmp_path / f"{number:05}.parquet")
        pq.write_table(pa.table({"caption": [f"caption {number}"]}), sources[-1])
    data = replace(cluster, data_workers=6)  # 3 CPUs: more than a node has
    run_on_ray(data)(MakeUpper(tmp_path / "log", 1.5), sources, tmp_path / "out", fingerprint="f", label="upper")
    assert roles() == {"head": 1, "data": 2}

    home = tmp_path / "home"
    home.mkdir()
    job = RayTrainJob(
        method=tiny.clip_config(2),
        encoder=tiny.encoder_config(home),
        shards=tuple(tiny.write_shards(tmp_path / "shards")),
        out=tmp_path / "train",
        train=TrainConfig(workers=2, log_every=1, engine="torch"),
    )
    train(job, cluster, lambda lines: None)
    assert roles() == {"head": 1, "data": 2, "train": 1}
    evaluate(contenders, voc, cluster, tmp_path / "scores")
    assert roles() == {"head": 1, "data": 2, "train": 1}

    busy = {(name, role) for name, asks, role in placed() if asks}
    assert {role for name, role in busy if "Worker" in name or "Evaluator" in name} == {"data", "train"}
    assert {role for name, role in busy if "RunShards" in name} == {"data"}
    assert {role for name, role in busy if "Train" in name or name.endswith("Evaluator")} == {"train"}

    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"64 training processes .* on nodes with role=train, and the Ray cluster has room for 4"
    ):
        train(
            replace(job, out=tmp_path / "large", train=replace(job.train, workers=64, wait_seconds=5)), cluster, lambda _: None
        )
    assert time.monotonic() - began < 60
    assert nodes_to_come().coming == 0
    assert roles() == {"head": 1, "data": 2, "train": 1}, "what cannot be had whole is not begun"
