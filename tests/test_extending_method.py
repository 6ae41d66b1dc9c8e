"""docs/extending.md, followed to the letter in a copy of the package: its example becomes a method like any other."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import torch

from helpers import tiny
from helpers.chain import Chain
from helpers.paths import REPO
from helpers.recipes import command, recipe, run
from owseg.data import Batch
from owseg.trainable import losses_of

UNTOUCHED = ("cluster", "configs", "filtering", "miniature", "pipelines", "storage")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the recipe applied."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("owseg", *UNTOUCHED):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    method, imported, field, _ = recipe("A method")
    (folder / "owseg" / "methods" / "colours.py").write_text(method)
    registry = folder / "owseg" / "methods" / "__init__.py"
    text = registry.read_text()
    text = text.replace("from owseg.methods.ovsegmentor import", f"{imported}from owseg.methods.ovsegmentor import", 1)
    before, last, after = re.split(r'(    vilseg: .*\n    """.*"""\n)', text, maxsplit=1)
    text = f"{before}{last}{field}{after}"
    registry.write_text(text)
    return folder


def test_help_tells_of_the_method(copy: Path) -> None:
    text = " ".join(run(copy, "pipelines/evaluate.py", "--help", "all").split())
    assert "method_settings.colours colours Pixels by their colour." in text
    assert "method_settings.colours.background_threshold 0.2 Cosine similarity below which a pixel is background" in text


def test_it_trains_and_is_a_row_of_the_table(copy: Path, chain: Chain, tmp_path: Path) -> None:
    """The recipe's command, on the shards and the CLIP of the smallest run."""
    folder = tmp_path / "run"
    shutil.copytree(chain.folder, folder, ignore=shutil.ignore_patterns("config.yaml", "mlflow*", "evaluate", "tcl"))
    smallest = ("--config", "configs/smoke.yaml", f"run_dir={folder}", "train.workers=1", "evaluate.datasets=[voc21, ade20k]")
    printed = run(copy, "pipelines/full.py", *smallest, *command("full", "colours"))
    assert "download: skipped, complete already" in printed
    assert re.search(r"^│ colours +│", printed, flags=re.MULTILINE)
    summary = json.loads((folder / "summary.json").read_text())
    row = summary["stages"]["evaluate"]["mIoU"]["colours"]
    assert set(row) >= {"voc21", "ade20k", "average"}
    assert 0 < row["average"] < 100
    log = [json.loads(line) for line in (folder / "train" / "colours" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 50
    assert log[-1]["loss/contrast"] < log[0]["loss/contrast"]


@pytest.mark.slow
def test_it_passes_the_checks(copy: Path) -> None:
    shutil.copy(REPO / "pyproject.toml", copy / "pyproject.toml")
    subprocess.run([sys.executable, "-m", "mypy", "-p", "owseg"], cwd=copy, check=True, env=os.environ)
    subprocess.run([sys.executable, "-m", "ruff", "check", "owseg/methods"], cwd=copy, check=True)


def test_it_may_be_cut_in_two_for_micro_batches(tmp_path: Path) -> None:
    """The recipe's `encode` and `combine` in place of its `losses`: the same loss, whole and three samples at a time."""
    method, _, _, parts = recipe("A method")
    losses = re.search(r"    def losses\(.*?(?=\n    def )", method, flags=re.DOTALL)
    assert losses is not None
    cut = method.replace(losses[0], indent(parts, "    ")).replace(
        "class Colours(TrainableMethod)", "class Colours(ContrastiveMethod)"
    )
    cut = f"from owseg.micro_batches import ContrastiveMethod\n{cut}"
    encoder = tiny.encoder(tmp_path)
    captions = [f"a {name} wall" for name in ("red", "blue", "green", "yellow")]
    batch = Batch(torch.rand(4, 3, 32, 32), encoder.tokenize(captions), captions, captions)
    found = []
    for text, micro_batch in ((method, 0), (cut, 0), (cut, 3)):
        names: dict[str, Any] = {"__name__": "colours"}
        exec(compile(text, "colours.py", "exec"), names)
        torch.manual_seed(0)
        built = names["ColoursConfig"]().build(encoder)
        built.micro_batch = micro_batch
        found.append(losses_of(built, batch)["contrast"].item())
    assert found[1] == found[0]
    assert found[2] == pytest.approx(found[0], rel=1e-6)
