"""Tars that a user has already: found in folders and by patterns, and told by what they hold."""

from pathlib import Path

import pytest

from cluster.train_config import TrainConfig
from filtering.link_set import LinkSet, write_forgotten
from helpers.tar_files import samples, write
from owseg import InputError
from pipelines.app.own_shards import forgotten_keys, own_shards, tars_at
from pipelines.app.settings import Config


def test_tars_of_folders_and_patterns(tmp_path: Path) -> None:
    found = [write(tmp_path / name, samples(2)) for name in ("a/train.v1-000.tar", "a/train.v1-001.tar", "b/0.tar")]
    write(tmp_path / "b" / "._0.tar", [])
    assert tars_at(str(tmp_path)) == found
    assert tars_at(f"{tmp_path}/a/*-001.tar") == found[1:2]
    assert tars_at(f"{tmp_path}/**/*.tar") == found
    config = Config(run_dir=str(tmp_path / "run"), train=TrainConfig(shards=str(tmp_path)))
    before = own_shards(config)
    assert before == own_shards(config)
    write(found[0], samples(3))
    assert own_shards(config)["digest"] != before["digest"]


def test_a_runs_list_leaves_samples_of_them_out(tmp_path: Path) -> None:
    """Names that are in no tar change nothing."""
    config = Config(run_dir=str(tmp_path / "run"), train=TrainConfig(shards=str(tmp_path)))
    write(tmp_path / "0.tar", samples(3))
    before = own_shards(config)
    write_forgotten(tmp_path / "run", LinkSet(("http://photos.test/a.jpg", "0009")))
    assert (own_shards(config), forgotten_keys(config)) == (before, ())
    write_forgotten(tmp_path / "run", LinkSet(("0002", "0009", "0000")))
    assert forgotten_keys(config) == ("0000", "0002")
    assert own_shards(config)["digest"] != before["digest"]


@pytest.mark.parametrize("given", ["none", "*.tar", "empty"])
def test_none_are_told(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^train\.shards: .*; give a folder of WebDataset tars, or a pattern"):
        tars_at(str(tmp_path / given))
