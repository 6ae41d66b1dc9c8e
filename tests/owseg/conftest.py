"""What tests of trained models share."""

from pathlib import Path

import pytest

from owseg.predict import Model, load


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return load(tiny_run)
