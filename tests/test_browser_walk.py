"""A finished run as readers see it in a browser: MLflow, the reports and a comparison, at a desk and on a phone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import REPO, load_tool

pytest.importorskip("playwright")
browser_walk = load_tool("browser_walk")


@pytest.mark.slow
@pytest.mark.skipif(not Path(browser_walk.CHROMIUM).is_file(), reason="Chromium is not installed")
def test_a_reader_finds_runs_scores_models_pictures_and_reports(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["pipelines/full.py", "--config", "configs/smoke.yaml", f"run_dir={run}", "train.score_checkpoints=true"]
    subprocess.run([sys.executable, *command], cwd=REPO, check=True, timeout=900)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    browser_walk.walk_through(run, Path(shutil.copytree(run, tmp_path / "other")), tmp_path / "compare.html", pictures)
    names = {picture.stem for picture in pictures.glob("*.png")}
    assert {
        "mlflow_runs",
        "mlflow_run",
        "mlflow_compare",
        "mlflow_slider",
        "mlflow_model",
        "mlflow_corpus",
        "playground_page",
    } <= names
