"""Where things lie: the repository, the tests' own data, and what only some machines have beside the repository."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]
DATA = REPO / "tests" / "data"
SHARED = REPO.parent / "shared"
"""Captions, photos, masks and recorded numbers of third parties. A clone comes without them."""
CAPTIONS, COCO_MINI, MASKS, TREEBANK = (SHARED / "data" / name for name in ("captions", "coco_mini", "masks", "ud_english_ewt"))
GOLDEN = SHARED / "golden"

PYTHONPATH = os.pathsep.join([str(REPO), str(REPO / "tests")])
"""For processes that import `helpers`. The packages come first, as folders of the tests bear their names."""


def needs(path: Path) -> pytest.MarkDecorator:
    """Skips a test where something that lies beside the repository is missing."""
    return pytest.mark.skipif(not path.exists(), reason=f"{path.relative_to(REPO.parent)} is not beside the repository")


def load_tool(name: str) -> ModuleType:
    """The script `tools/NAME.py` as a module; scripts import their neighbours."""
    spec = importlib.util.spec_from_file_location(name, REPO / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(REPO / "tools"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(REPO / "tools"))
    return module
