"""The small world, built once."""

from pathlib import Path

import pytest

from helpers.miniature import SMALL
from miniature.world import build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    build_world(SMALL, out, processes=1)
    return out
