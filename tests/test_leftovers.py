"""Both packages, which may not import each other, take the same names for what systems and editors leave."""

from types import ModuleType

import pytest

import filtering.listing
import owseg.listing
from helpers.leftovers import DATA, LEFTOVER_FOLDERS, LEFTOVERS

PACKAGES = pytest.mark.parametrize("package", [filtering.listing, owseg.listing], ids=["filtering", "owseg"])


@PACKAGES
@pytest.mark.parametrize("name", [*LEFTOVERS, *LEFTOVER_FOLDERS])
def test_leftovers(package: ModuleType, name: str) -> None:
    assert package.is_leftover(name)


@PACKAGES
@pytest.mark.parametrize("name", DATA)
def test_data(package: ModuleType, name: str) -> None:
    assert not package.is_leftover(name)
