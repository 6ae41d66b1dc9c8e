"""The files that describe clusters: valid by their schemas, large enough for the recipes, in step with settings."""

import copy
import re
from typing import Any

import pytest
import yaml

from cluster.capacity import room
from cluster.session import SessionConfig, selector_of
from helpers import kuberay
from helpers.paths import REPO
from pipelines.app.config import load
from pipelines.app.settings import Config

RAY_UP = ["ray_cluster.yaml", "deploy/gcp.yaml", "deploy/onprem.yaml"]
WITH_TYPES = ["ray_cluster.yaml", "deploy/gcp.yaml"]
KUBERAY = ["deploy/kuberay.yaml", "deploy/kuberay_cluster.yaml"]
RECIPES = ["tcl", "ovsegmentor", "vilseg"]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (REPO / "constraints.txt").read_text(), re.M)
    assert found
    return found[1]


def read(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((REPO / file).read_text()))


def cluster_of(file: str) -> dict[str, Any]:
    """The RayCluster's spec in a file for KubeRay."""
    spec = read(file)["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def largest(file: str) -> list[dict[str, Any]]:
    """All nodes that a file allows, as `ray.nodes()` would describe them."""
    if file in KUBERAY:
        cluster = cluster_of(file)
        nodes = [(cluster["headGroupSpec"], {"CPU": 0.0}, 1)]
        for group in cluster["workerGroupSpecs"]:
            amounts = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            resources = {"CPU": float(amounts["cpu"]), "GPU": float(amounts.get("nvidia.com/gpu", 0))}
            nodes.append((group, resources, group["maxReplicas"]))
    else:
        types = read(file)["available_node_types"].values()
        nodes = [(one, one["resources"], one.get("max_workers", 1)) for one in types]
    return [
        {"Alive": True, "Resources": resources, "Labels": one["labels"]}
        for one, resources, count in nodes
        for _ in range(count)
    ]


@pytest.mark.parametrize("file", RAY_UP)
def test_ray_up_accepts_the_file(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = read(file)
    validate_config(prepare_config(copy.deepcopy(tree)))
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config({**tree, "max_worker": 1}))


@pytest.mark.parametrize("file", KUBERAY)
def test_kuberay_knows_every_field(file: str) -> None:
    tree = read(file)
    assert kuberay.problems(tree, kuberay.KINDS[tree["kind"]]) == []
    broken = copy.deepcopy(tree)
    cluster = broken["spec"].get("rayClusterSpec", broken["spec"])
    cluster["workerGroupSpecs"][0]["label"] = {}
    cluster["workerGroupSpecs"][1]["maxReplicas"] = "2"
    cluster["autoscalerOptions"]["version"] = "v3"
    assert [line.rpartition(".")[2] for line in kuberay.problems(broken, kuberay.KINDS[tree["kind"]])] == [
        "version is 'v3', not one of ['v1', 'v2']",
        "label is unknown",
        "maxReplicas is '2', not int",
    ]


def test_the_cluster_that_stays_is_that_of_the_job() -> None:
    assert cluster_of("deploy/kuberay_cluster.yaml") == cluster_of("deploy/kuberay.yaml")


@pytest.mark.parametrize("file", RAY_UP)
def test_a_cluster_file_keeps_work_off_the_head_and_the_port_closed(file: str) -> None:
    tree = read(file)
    head, worker = (" ".join(tree[f"{which}_start_ray_commands"]) for which in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in commands for commands in (head, worker))
    assert any("constraints.txt" in command for command in tree["setup_commands"])
    if file in WITH_TYPES:
        nodes = tree["available_node_types"]
        assert nodes["head"]["resources"] == {"CPU": 0}
        assert tree["max_workers"] == sum(node.get("max_workers", 0) for node in nodes.values())
        assert all(node.get("min_workers", 0) == 0 for node in nodes.values()), "idle nodes cost"
    else:  # Ray takes no node types for machines of one's own
        assert "--num-cpus=0" in head
        assert "--labels=role=head" in head
        assert "echo train || echo data" in worker
        assert "--labels=role=$role" in worker
        assert tree["min_workers"] == tree["max_workers"] == len(tree["provider"]["worker_ips"])


@pytest.mark.parametrize("file", [*RAY_UP, *KUBERAY])
def test_the_command_in_the_file_is_one_that_the_pipelines_take(file: str) -> None:
    text = (REPO / file).read_text()
    settings = re.findall(r"\b(?:run_dir|session\.\w+|tracking\.\w+)=\S+", text.replace("tracking.uri= ", ""))
    config = load(Config, None, settings)
    labels = [selector_of(config.session.data_label), selector_of(config.session.train_label)]
    assert config.session != SessionConfig()
    if file in RAY_UP and file not in WITH_TYPES:
        assert labels == [{"role": "data"}, {"role": "train"}]
    else:
        assert all(label in [node["Labels"] for node in largest(file)] for label in labels)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("file", [*WITH_TYPES, *KUBERAY])
def test_the_papers_recipes_fit_and_data_work_has_no_gpu(file: str, recipe: str) -> None:
    train = load(Config, REPO / "configs" / f"{recipe}.yaml", []).train
    nodes = largest(file)
    assert room(nodes, train.each, {"role": "train"}) >= train.workers
    assert room(nodes, {"GPU": 1.0}, {"role": "data"}) == room(nodes, {"GPU": 1.0}, {"role": "head"}) == 0
    assert room(nodes, {"CPU": 0.5}, {"role": "head"}) == 0


@pytest.mark.parametrize("file", KUBERAY)
def test_kubernetes_pods_ask_for_what_the_image_holds(file: str) -> None:
    cluster = cluster_of(file)
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
    image = services["server"]["build"]["dockerfile_inline"]
    assert f"mlflow[auth]=={pinned('mlflow')} " in image
    assert f" psycopg2-binary=={pinned('psycopg2-binary')} boto3=={pinned('boto3')}\n" in image
    assert services["server"]["ports"] == ["127.0.0.1:5000:5000"]
