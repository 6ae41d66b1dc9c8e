"""The files that describe clusters: valid by Ray's own schema, and in step with the settings and the pinned versions."""

import copy
import re
from typing import Any

import pytest
import yaml

from cluster.session import SessionConfig, selector_of
from helpers.paths import REPO
from pipelines.app.config import load
from pipelines.app.settings import Config


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (REPO / "constraints.txt").read_text(), re.M)
    assert found
    return found[1]


@pytest.fixture
def ray_up() -> dict[str, Any]:
    return dict(yaml.safe_load((REPO / "ray_cluster.yaml").read_text()))


def test_ray_up_accepts_the_cluster_file(ray_up: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(ray_up)))
    misspelt = {**ray_up, "max_worker": 1}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(misspelt))


def test_the_cluster_file_keeps_work_off_the_head_and_the_port_closed(ray_up: dict[str, Any]) -> None:
    nodes = ray_up["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert "GPU" in nodes["train_gpu"]["resources"]
    assert ray_up["max_workers"] >= sum(node.get("max_workers", 0) for node in nodes.values())
    head = " ".join(ray_up["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    for commands in (head, " ".join(ray_up["worker_start_ray_commands"])):
        assert "RAY_AUTH_MODE=token" in commands
    assert any("constraints.txt" in command for command in ray_up["setup_commands"])


@pytest.mark.parametrize("file", ["ray_cluster.yaml", "deploy/kuberay.yaml"])
def test_the_command_in_the_file_is_one_that_the_pipelines_take(file: str) -> None:
    text = (REPO / file).read_text()
    settings = re.findall(r"\b(?:run_dir|session\.\w+|tracking\.\w+)=\S+", text)
    config = load(Config, None, settings)
    labels = [selector_of(config.session.data_label), selector_of(config.session.train_label)]
    assert config.session != SessionConfig()
    tree = yaml.safe_load(text)
    if "spec" in tree:
        groups = tree["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    else:
        groups = list(tree["available_node_types"].values())
    assert all(label in [group["labels"] for group in groups] for label in labels)


def test_the_kubernetes_job_asks_for_what_the_image_holds() -> None:
    cluster = yaml.safe_load((REPO / "deploy" / "kuberay.yaml").read_text())["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"rayproject/ray:{pinned('ray')}-py311" in (REPO / "deploy" / "Dockerfile").read_text()
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == "open-world-segmentation:0.1.0"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_team_server_runs_the_pinned_mlflow() -> None:
    services = yaml.safe_load((REPO / "deploy" / "mlflow.yaml").read_text())["services"]
    assert f"mlflow=={pinned('mlflow')} " in services["server"]["build"]["dockerfile_inline"]
    assert services["server"]["ports"] == ["127.0.0.1:5000:5000"]
