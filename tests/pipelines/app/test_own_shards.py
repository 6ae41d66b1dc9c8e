"""Tars that a user has already: found in folders and by patterns, and told by what they hold."""

from pathlib import Path

import pytest

from helpers.tar_files import samples, write
from owseg import InputError
from pipelines.app.own_shards import own_shards, tars_at


def test_tars_of_folders_and_patterns(tmp_path: Path) -> None:
    found = [write(tmp_path / name, samples(2)) for name in ("a/train.v1-000.tar", "a/train.v1-001.tar", "b/0.tar")]
    write(tmp_path / "b" / "._0.tar", [])
    assert tars_at(str(tmp_path)) == found
    assert tars_at(f"{tmp_path}/a/*-001.tar") == found[1:2]
    assert tars_at(f"{tmp_path}/**/*.tar") == found
    before = own_shards(str(tmp_path))
    assert before == own_shards(str(tmp_path))
    write(found[0], samples(3))
    assert own_shards(str(tmp_path))["digest"] != before["digest"]


@pytest.mark.parametrize("given", ["none", "*.tar", "empty"])
def test_none_are_told(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^train\.shards: .*; give a folder of WebDataset tars, or a pattern"):
        tars_at(str(tmp_path / given))
