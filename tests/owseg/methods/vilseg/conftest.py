"""Shards that tests of ViL-Seg read."""

from pathlib import Path

import pytest

from helpers import tiny


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "tars"
    tiny.write_shards(folder)
    return folder
