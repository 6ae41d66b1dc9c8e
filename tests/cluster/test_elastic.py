"""On how many processes an elastic training runs: numbers that divide its batches, as there is room, more after checkpoints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from cluster import InputError
from cluster.checkpoints import LIST
from cluster.elastic import ElasticPolicy
from cluster.train_config import TrainConfig
from filtering.files import write_json


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.nodes", lambda: found)
    monkeypatch.setattr(ElasticPolicy, "_maybe_send_resource_request", lambda self: None)
    return found


def set_room(nodes: list[dict[str, Any]], *cpus: float, label: str = "gpu") -> None:
    nodes[:] = [{"Alive": True, "Resources": {"CPU": cpu}, "Labels": {"kind": label}} for cpu in cpus]


def checkpointed(storage: Path, name: str) -> None:
    write_json(storage / LIST, {"checkpoint_results": [{"checkpoint_dir_name": name}]})


def test_it_begins_with_what_fits_and_grows_behind_a_checkpoint(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    config = ScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 0.5})
    policy = ElasticPolicy(config, [2, 4, 8], {"kind": "gpu"}, tmp_path)
    assert policy._get_num_workers_for_resource_request() == 8

    set_room(nodes, 1.0, 2.4, label="gpu")  # for two and four
    assert policy.make_decision_for_non_running_worker_group() == ResizeDecision(4, {"CPU": 0.5})
    set_room(nodes, 1.0, 2.4, label="cpu")
    assert policy.make_decision_for_non_running_worker_group() == ResizeDecision(2, {"CPU": 0.5}), "it waits for the fewest"

    running = SimpleNamespace(num_workers=4)
    set_room(nodes, 4.0)
    assert policy.make_decision_for_running_worker_group(running, None) == NoopDecision()
    checkpointed(tmp_path, "one")
    assert policy.make_decision_for_running_worker_group(running, None) == ResizeDecision(8, {"CPU": 0.5})
    assert policy.make_decision_for_running_worker_group(running, None) == NoopDecision(), "the steps since would be lost"
    set_room(nodes, 1.0)
    checkpointed(tmp_path, "two")
    assert policy.make_decision_for_running_worker_group(running, None) == NoopDecision(), "it runs on as long as it can"
    assert policy.make_decision_for_non_running_worker_group() == ResizeDecision(2, {"CPU": 0.5})
    checkpointed(tmp_path, "three")
    assert policy.make_decision_for_running_worker_group(SimpleNamespace(num_workers=2), None) == NoopDecision()


@pytest.mark.parametrize(("given", "least", "most"), [(3, 3, 3), ("3", 3, 3), ("2..8", 2, 8), (" 4..4 ", 4, 4), (0, 0, 0)])
def test_a_number_of_workers_or_a_range(given: int | str, least: int, most: int) -> None:
    config = TrainConfig(workers=given)
    assert (config.least_workers, config.most_workers) == (least, most)
    assert config.workers == (most if least == most else f"{least}..{most}")


@pytest.mark.parametrize("given", ["many", "8..2", "0..4", "-1", -1, "2..", "..4", "2...4", "1.5", "", "2..8..9", "²..8"])
def test_other_ranges_are_refused(given: int | str) -> None:
    with pytest.raises(InputError, match=r"workers must be a number, or two with \.\. between them such as 2\.\.8, not "):
        TrainConfig(workers=given)


def test_only_numbers_that_divide_all_batches_count() -> None:
    assert TrainConfig(workers="2..8").counts([12, 24]) == [2, 3, 4, 6]
    assert TrainConfig(workers="5..7").counts([12, 16]) == []
    assert TrainConfig(workers=3).counts([8]) == []
    assert TrainConfig(workers="2..999999999").counts([12]) == [2, 3, 4, 6, 12]
    assert TrainConfig(workers="2..4", threads=0).spread([12], cores=8).threads == 2
