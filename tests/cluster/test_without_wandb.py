"""Nothing is left in the temporary folder by libraries that import wandb without need."""

import os
import subprocess
import sys
from pathlib import Path

from helpers.paths import REPO

CODE = """
import os, signal
from cluster.without_wandb import without_wandb
without_wandb()
import timm, transformers.utils.import_utils
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_folders_of_wandb(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", CODE], cwd=REPO, env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert run.returncode == -9
    assert [path.name for path in tmp_path.iterdir() if "wandb" in path.name] == []
