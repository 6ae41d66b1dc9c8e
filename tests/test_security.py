"""SECURITY.md keeps its word: each test exists, and fails without its protection. What code may not do is scanned."""

import ast
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.chain import PLANTED, Chain, environment
from helpers.dangerous import RULES, dangerous_calls
from helpers.paths import REPO
from helpers.proofs import PROOFS, Proof

PAGE = (REPO / "SECURITY.md").read_text(encoding="utf-8")
CODE = ("cluster", "filtering", "miniature", "owseg", "pipelines", "storage", "tools")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE)))


def sources() -> dict[str, str]:
    """All code that ships, by its path."""
    paths = [path for folder in CODE for path in (REPO / folder).rglob("*.py")]
    return {path.relative_to(REPO).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("test", NAMED)
def test_what_the_page_names_exists(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_row_of_the_page_has_a_test_and_each_test_a_proof() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row.rpartition(" | ")[2]] == []
    assert {proof.test for proof in PROOFS} == set(NAMED)


# ------------------------------------------------------------------------------------------------------------- what is scanned

KNOWN = {
    # Between a process and the one that it started, through a pipe.
    "filtering/images/guard.py: pickle": 2,
    # Our own replies, in a folder that nobody else may write to: storage/private.py.
    "storage/tar_cache.py: pickle": 1,
    # A reader that knows nine names, all of them tensors' parts.
    "owseg/weights.py: pickle": 1,
}


def test_no_dangerous_call() -> None:
    found: dict[str, int] = {}
    for path, code in sources().items():
        for _, kind in dangerous_calls(code):
            found[f"{path}: {kind}"] = found.get(f"{path}: {kind}", 0) + 1
    assert found == KNOWN


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import torch\ntorch.load(path, weights_only=False)", "torch.load without weights_only"),
        ("import torch as t\nt.load(path)", "torch.load without weights_only"),
        ("from torch import load\nload(path)", "torch.load without weights_only"),
        ("import pickle\npickle.load(file)", "pickle"),
        ("from pickle import loads as read\nread(file)", "pickle"),
        ("import pickle\nclass Mine(pickle.Unpickler): ...", "pickle"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "object arrays"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "YAML that makes objects"),
        ("import yaml\nyaml.unsafe_load(text)", "YAML that makes objects"),
        ("eval(text)", "code from text"),
        ("import subprocess\nsubprocess.run(text, shell=True)", "a shell"),
        ("import os\nos.system(text)", "a shell"),
        ("import tarfile\ntarfile.open(path).extractall(folder)", "an archive unpacked"),
        ("import shutil\nshutil.unpack_archive(path)", "an archive unpacked"),
        ("import jinja2\njinja2.Environment(loader=x)", "pages that do not escape"),
        ("import ssl\nssl._create_unverified_context()", "certificates that nobody checks"),
        ("session.get(url, verify=False)", "certificates that nobody checks"),
    ],
)
def test_dangerous_calls_are_seen(code: str, kind: str) -> None:
    assert [found for _, found in dangerous_calls(code)] == [kind]
    assert kind in RULES


def test_harmless_calls_are_not() -> None:
    code = "import torch, yaml, numpy as np\ntorch.load(p, weights_only=True)\nyaml.safe_load(t)\nnp.load(p)\nre.compile(t)"
    assert list(dangerous_calls(code)) == []


def test_no_template_switches_escaping_off() -> None:
    templates = [path for folder in CODE for path in (REPO / folder).rglob("*.html")]
    assert templates
    for path in templates:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape\s+false|<script", text), path


EVERYWHERE = re.compile(r"0\.0\.0\.0(?!/)|\[?::\]?:\d|host=\"\"|bind\(\(\"\"")
INSIDE_CONTAINERS = {"deploy/mlflow.yaml", "deploy/kuberay.yaml", "deploy/kuberay_cluster.yaml"}
"""A pod and a container have addresses of their own; what of them is reached from outside is said beside."""


def test_servers_listen_on_loopback() -> None:
    files = {path: code for path, code in sources().items() if path != "filtering/images/addresses.py"}
    for folder, pattern in ((".", "Makefile"), ("deploy", "*"), ("configs", "*"), (".", "ray_cluster.yaml")):
        files |= {path.relative_to(REPO).as_posix(): path.read_text() for path in (REPO / folder).glob(pattern)}
    assert {path for path, text in files.items() if EVERYWHERE.search(text)} == INSIDE_CONTAINERS
    assert '"127.0.0.1:5000:5000"' in files["deploy/mlflow.yaml"]
    assert not re.search(r"mlflow (?:ui|server).*--host", files["Makefile"]), "MLflow's own default is loopback"


# ------------------------------------------------------------------------------------------------------------ what a run writes


def planted_in(folder: Path) -> list[str]:
    """The files below a folder with a planted secret in their bytes or names."""
    secrets = [value.rpartition(":")[2].partition("@")[0].encode() for value in PLANTED.values()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(secret in os.fsencode(path) + path.read_bytes() for secret in secrets)]


def test_a_run_writes_down_no_secret(chain: Chain) -> None:
    """Of those in its environment: in no file, table, database or name, and not in what it prints."""
    assert len(list(chain.folder.rglob("*"))) > 100
    assert planted_in(chain.folder.parent) == [], "nor in the store beside it"
    assert "planted" not in chain.output


@pytest.mark.parametrize("name", PLANTED)
def test_a_secret_that_is_written_down_is_found(tmp_path: Path, name: str) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("create table params (value text)")
        store.execute("insert into params values (?)", [PLANTED[name]])
    (tmp_path / "config.yaml").write_text("seed: 0")
    (tmp_path / "environment.json").write_text(json.dumps({name: PLANTED[name]}))
    assert sorted(planted_in(tmp_path)) == ["environment.json", "mlflow.db"]


# ------------------------------------------------------------------------------------------------------- without the protection


@pytest.mark.slow
@pytest.mark.parametrize("proof", [proof for proof in PROOFS if proof.file], ids=lambda proof: proof.test.rpartition("::")[2])
def test_without_the_protection_its_test_fails(tmp_path: Path, proof: Proof) -> None:
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns("__pycache__", ".*", "runs", "*.egg-info")
    shutil.copytree(REPO, copy, ignore=left_out, copy_function=os.link, symlinks=True)
    changed = copy / proof.file
    text = changed.read_text(encoding="utf-8")
    assert proof.there in text, "the proof is of other code"
    changed.unlink()  # a link: the repository's own stays as it is
    changed.write_text(text.replace(proof.there, proof.instead), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", proof.test]
    ended = subprocess.run(
        command, cwd=copy, env=environment() | {"PYTHONPATH": ""}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert " failed" in ended.stdout.splitlines()[-1]
