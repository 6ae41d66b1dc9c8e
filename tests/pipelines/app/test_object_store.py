"""The driver's copy of a run's folder in a bucket: what is saved when, and what of settings is brought here."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.s3 import S3, s3_server
from pipelines.app.config import from_dict
from pipelines.app.object_store import DATABASE, held_copy, inputs_here, save
from pipelines.app.settings import Config
from storage import InputError
from storage.client import StorageConfig, Store
from storage.copies import at, shown
from storage.lease import NAME

URL = "s3://bucket/runs/one"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as running:
        running.make_bucket("bucket")
        yield running


@pytest.fixture
def store(server: S3, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The run's folder, empty."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    found = Store(URL)
    found.delete(*(entry.name for entry in found.entries()))
    return found


def stored(store: Store) -> set[str]:
    return {entry.name for entry in store.entries()}


def test_what_is_done_is_saved_also_where_an_error_ends_it(store: Store, tmp_path: Path) -> None:
    config = StorageConfig(scratch=str(tmp_path / "one"))

    def fail() -> None:
        with held_copy(URL, config) as folder:
            assert stored(store) == {NAME}
            assert shown(folder / "a") == f"{URL}/a"
            (folder / "a").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert stored(store) == {"a"}
    with held_copy(URL, replace(config, scratch=str(tmp_path / "another machine"))) as folder:
        assert (folder / "a").read_text() == "1"
        (folder / "large").write_bytes(bytes(10_000))
    assert stored(store) == {"a", "large"}
    assert at(folder) is None
    assert (folder / "a").exists()
    assert not (folder / "large").exists(), "what stays on the machine is small"


def test_a_database_in_use_is_saved_whole(store: Store, tmp_path: Path) -> None:
    with held_copy(URL, StorageConfig(scratch=str(tmp_path))) as folder:
        copy = tmp_path / "copy.db"
        with closing(sqlite3.connect(folder / DATABASE)) as live:
            live.execute("create table experiments (artifact_location text)")
            live.execute("create table runs (name text, artifact_uri text)")
            files = "file:///another/machine/mlartifacts"
            live.execute("insert into experiments values (?)", (files,))
            live.commit()
            live.execute("insert into runs values ('under way', ?)", (f"{files}/1/artifacts",))  # not committed
            save(folder)
            copy.write_bytes(store.get(DATABASE) or b"")
            with closing(sqlite3.connect(copy)) as saved:
                assert saved.execute("select count(*) from runs").fetchall() == [(0,)]
            live.commit()
    with held_copy(URL, StorageConfig(scratch=str(tmp_path))) as folder, closing(sqlite3.connect(folder / DATABASE)) as again:
        here = (folder / "mlartifacts").as_uri()  # MLflow finds the files of a run that another machine began
        assert again.execute("select * from experiments").fetchall() == [(here,)]
        assert again.execute("select * from runs").fetchall() == [("under way", f"{here}/1/artifacts")]


def test_copies_that_nobody_worked_on_for_days_go(store: Store, tmp_path: Path) -> None:
    config = StorageConfig(scratch=str(tmp_path))
    with held_copy(URL, config) as old:
        pass
    os.utime(old, (0, 0))
    store.put("x", b"1")
    with held_copy("s3://bucket/runs/two", config):
        assert not old.exists()


def test_what_settings_name_in_a_bucket_is_brought_here(store: Store, tmp_path: Path) -> None:
    for name in ("benchmarks/voc/1.png", "clip/clip.safetensors", "clip/model.json", "clip/other.safetensors"):
        store.put(name, b"x" * (2 << 20 if name.endswith("safetensors") else 1))
    config = from_dict(
        Config,
        {
            "storage": {"scratch": str(tmp_path)},
            "evaluate": {"root": f"{URL}/benchmarks"},
            "encoder": {"pretrained": f"{URL}/clip/clip.safetensors"},
            "filter": {"source": {"path": f"{URL}/links.tsv"}},
        },
    )
    here = inputs_here(config)
    assert [path.name for path in Path(here.evaluate.root).rglob("*.png")] == ["1.png"]
    pretrained = Path(here.encoder.pretrained)
    assert pretrained.is_file()
    assert sorted(path.name for path in pretrained.parent.iterdir() if path.is_file()) == ["clip.safetensors", "model.json"]
    assert here.filter.source.path == f"{URL}/links.tsv"
    with pytest.raises(InputError, match=rf"^evaluate.root: there is nothing at {URL}/nothing"):
        inputs_here(replace(config, evaluate=replace(config.evaluate, root=f"{URL}/nothing")))
