"""Trainings that a cluster has no room for are told so at once, and not waited for without a word."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from cluster import InputError, capacity
from cluster.capacity import LONGEST_SECONDS, Growth, ensure_room, room
from cluster.session import SessionConfig
from cluster.train_config import TrainConfig
from helpers import tiny
from helpers.paths import REPO
from owseg import InputError as MistakeOfTraining
from pipelines.app import checks
from pipelines.app.config import load
from pipelines.app.settings import Config

CPU, GPU = {"CPU": 0.5}, {"CPU": 2.0, "GPU": 1.0}


def node(cpu: float, gpu: float = 0.0, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpu, **({"GPU": gpu} if gpu else {})}, "Labels": labels}


@pytest.mark.parametrize(
    ("nodes", "each", "label", "expected"),
    [
        ([node(2)], CPU, None, 4),
        ([node(1.5), node(0.4)], CPU, None, 3),
        ([node(64)], GPU, None, 0),
        ([node(48, 4), node(3, 4)], GPU, None, 5),
        ([node(48, 4, alive=False)], GPU, None, 0),
        ([node(8, 4, role="train"), node(8, 4, role="data"), node(8, 4)], GPU, {"role": "train"}, 4),
        ([node(0.3 * 3)], {"CPU": 0.3}, None, 3),  # in floating point a little less
    ],
)
def test_room(nodes: list[dict[str, Any]], each: dict[str, float], label: dict[str, str] | None, expected: int) -> None:
    assert room(nodes, each, label) == expected


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Time passes by sleeping alone."""
    now = [0.0]
    monkeypatch.setattr(capacity.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(capacity.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def with_nodes(monkeypatch: pytest.MonkeyPatch, *looks: list[dict[str, Any]]) -> list[Any]:
    """A Ray that shows one list of nodes after the other, and keeps the last; returns what it is asked for."""
    left, asked = list(looks), list[Any]()
    ray = ModuleType("ray")
    ray.nodes = lambda: left.pop(0) if len(left) > 1 else left[0]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(capacity, "_ask_for_nodes", lambda *given: asked.append(given))
    monkeypatch.setattr(capacity, "nodes_to_come", lambda: Growth(0, ""))
    return asked


def test_a_cluster_without_gpus_is_refused_within_a_minute_and_not_in_silence(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    said: list[str] = []
    asked = with_nodes(monkeypatch, [node(8)])
    with pytest.raises(InputError) as caught:
        ensure_room(2, GPU, None, patience=TrainConfig().wait_seconds, say=said.append)
    assert clock[0] <= 60
    assert len(said) >= 4
    assert said[0] == ("waits for a cluster with room for 2 training processes with 2 CPU and 1 GPU each: 0 fit by now (10 s)")
    assert "has room for 0; lower train.workers, train.use_gpu=false trains without GPUs" in str(caught.value)
    assert asked == [([GPU, GPU], None), ([], None)], "a wish that is left behind would keep nodes for ever"


def test_this_machines_own_ray_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    asked = with_nodes(monkeypatch, [node(2)])
    with pytest.raises(InputError, match=r"64 training processes with 0\.5 CPU each, and the Ray cluster has room for 4"):
        ensure_room(64, CPU, None, patience=0.0, say=pytest.fail)
    assert (clock[0], asked) == (0.0, [])


def test_a_cluster_that_grows_is_waited_for(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    asked = with_nodes(monkeypatch, *[[node(0)]] * 14, [node(0), node(48, 4, role="train")])
    said: list[str] = []
    ensure_room(4, GPU, {"role": "train"}, patience=600, say=said.append)
    assert len(said) == 1
    assert asked == [([GPU] * 4, [{"role": "train"}] * 4), ([], None)]


def test_a_node_that_takes_three_minutes_is_waited_for_as_long_as_it_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """The default patience is for clusters that nobody makes larger."""
    with_nodes(monkeypatch, *[[node(0)]] * 186, [node(48, 4, role="train")])
    monkeypatch.setattr(capacity, "nodes_to_come", lambda: Growth(1 if 5 < clock[0] < 180 else 0, ""))
    said: list[str] = []
    ensure_room(4, GPU, {"role": "train"}, patience=TrainConfig().wait_seconds, say=said.append)
    assert 180 <= clock[0] < 190
    assert said[1].endswith("0 fit by now (20 s), nodes on their way: 1")


def test_nodes_that_never_arrive_are_waited_for_half_an_hour_and_why_is_told(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    with_nodes(monkeypatch, [node(0)])
    monkeypatch.setattr(capacity, "nodes_to_come", lambda: Growth(1, "train_gpu: no spot capacity in us-west-2"))
    with pytest.raises(InputError, match="failed to bring a node: train_gpu: no spot capacity"):
        ensure_room(4, GPU, None, patience=50, say=lambda line: None)
    assert clock[0] == LONGEST_SECONDS


def test_nodes_that_lack_the_label_alone_are_told_of(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    with_nodes(monkeypatch, [node(48, 4)])
    with pytest.raises(InputError, match=r"on nodes with role=train, .* room for 0; .*") as caught:
        ensure_room(4, GPU, {"role": "train"}, patience=5, say=pytest.fail)
    assert str(caught.value).endswith(". Nodes without that label have room for 4 (session.train_label)")
    assert clock[0] == 5
    with pytest.raises(InputError) as caught:
        ensure_room(5, GPU, {"role": "train"}, patience=5, say=pytest.fail)
    assert "without that label" not in str(caught.value)


def test_what_the_autoscaler_is_about() -> None:
    """Its words, as Ray 2.60 sends them."""
    from ray.autoscaler.v2.schema import Stats
    from ray.autoscaler.v2.utils import ClusterStatusParser
    from ray.core.generated.autoscaler_pb2 import FailedInstanceRequest, GetClusterStatusReply, PendingInstance
    from ray.core.generated.autoscaler_pb2 import PendingInstanceRequest as Request

    reply = GetClusterStatusReply()
    state = reply.autoscaling_state
    state.pending_instance_requests.append(Request(ray_node_type_name="train_gpu", count=2, request_ts=1))
    state.pending_instances.append(PendingInstance(ray_node_type_name="train_gpu", instance_id="i-1"))
    for number, reason in enumerate(("old", "quota of  GPUs\nis used up")):
        state.failed_instance_requests.append(
            FailedInstanceRequest(ray_node_type_name="train_gpu", count=1, start_ts=number, reason=reason)
        )
    status = ClusterStatusParser.from_get_cluster_status_reply(reply, stats=Stats())
    assert capacity.growth_of(status) == Growth(3, "train_gpu: quota of GPUs is used up")
    empty = ClusterStatusParser.from_get_cluster_status_reply(GetClusterStatusReply(), stats=Stats())
    assert capacity.growth_of(empty) == Growth(0, "")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.use_gpu=true", "train.workers=1"],
            "1 training process with 1 CPU and 1 GPU each, and this machine has room for 0",
        ),
        (["train.use_gpu=true", "train.workers=2"], "2 training processes with 1 CPU and 1 GPU each"),
        (
            ["train.workers=64", "session.num_cpus=2"],
            "64 training processes with 0.5 CPU each, and this machine has room for 4",
        ),
    ],
)
def test_it_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load(Config, REPO / "configs" / "smoke.yaml", overrides)
    with pytest.raises(MistakeOfTraining) as caught:
        checks.check_room(config, tiny.clip_config())
    assert message in str(caught.value)
    checks.check_room(
        load(Config, REPO / "configs" / "smoke.yaml", [*overrides, "session.address=head:6379"]), tiny.clip_config()
    )


def test_what_a_cluster_of_ones_own_is() -> None:
    from cluster.session import is_shared

    assert is_shared(SessionConfig(address="head:6379"))
