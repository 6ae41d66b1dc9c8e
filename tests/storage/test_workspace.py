"""A local copy of a folder in an object store: what is pushed, pulled, dropped and removed, and in which order."""

import uuid
from pathlib import Path

import pytest

from helpers.s3 import S3
from storage.client import StorageConfig, Store
from storage.copies import at, attach, detach, fetched, names_in, shown, size_of, workspace_of
from storage.workspace import Workspace


@pytest.fixture
def url(s3: S3) -> str:
    return f"{s3.make_bucket(f'b-{uuid.uuid4().hex}')}/runs/one"


@pytest.fixture
def here(url: str, tmp_path: Path) -> Workspace:
    """This machine's copy."""
    return Workspace(Store(url), tmp_path / "here")


@pytest.fixture
def there(url: str, tmp_path: Path) -> Workspace:
    """Another machine's."""
    return Workspace(Store(url), tmp_path / "there")


def write(workspace: Workspace, **files: str) -> None:
    for name, text in files.items():
        path = workspace.root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def tree(workspace: Workspace) -> dict[str, str]:
    """The files of a copy."""
    files = [path for path in workspace.root.rglob("*") if path.is_file()]
    named = {path.relative_to(workspace.root).as_posix(): path for path in files}
    return {name: path.read_text(encoding="utf-8") for name, path in named.items()}


def stored(workspace: Workspace) -> set[str]:
    return {entry.name for entry in workspace.store.entries()}


def test_what_one_machine_pushes_another_pulls(here: Workspace, there: Workspace) -> None:
    write(here, config="1", corpus__a="2", corpus___work__b="scratch", corpus__c="3")
    write(here, **{".hidden": "no"})
    here.push()
    there.open()
    assert tree(there) == {"config": "1", "corpus/a": "2", "corpus/c": "3"}
    (here.root / "corpus/a").unlink()
    write(here, corpus__c="33")
    here.push(here.root / "corpus")
    there.pull(there.root / "corpus")
    assert tree(there) == {"config": "1", "corpus/c": "33"}
    assert stored(here) == {"config", "corpus/c"}


def test_nothing_that_is_the_same_travels_again(here: Workspace, there: Workspace, s3: S3) -> None:
    write(here, a="1", b="2")
    here.push()
    there.open()
    s3.requests.clear()
    here.push()
    there.pull(there.root)
    there.open()
    assert [request.partition("?")[0].split("/")[0] for request in s3.requests] == ["GET ", "GET "]  # two listings


def test_what_was_never_pushed_goes_when_the_copy_is_opened(here: Workspace) -> None:
    write(here, a="1", b="1")
    here.push()
    write(here, a="changed by a run that was killed", corpus__c="new", _work__journal="kept")
    here.open()
    assert tree(here) == {"a": "1", "b": "1", "_work/journal": "kept"}


def test_markers_come_after_the_files_and_go_before_them(here: Workspace, s3: S3) -> None:
    write(here, **{"filter.done.json": "m", "corpus__kept": "k", "corpus___done__0.done.json": "s", "summary.json": "all"})
    s3.requests.clear()
    here.push()
    assert [request.rpartition("/")[2] for request in s3.requests if request.startswith("PUT")] == [
        "kept",
        "0.done.json",
        "filter.done.json",
        "summary.json",
    ]
    (here.root / "filter.done.json").unlink()
    write(here, corpus__kept="other")
    s3.requests.clear()
    here.push()
    assert [request.partition(" ")[0] for request in s3.requests] == ["POST", "PUT"]  # S3 deletes with a POST
    assert "filter.done.json" not in stored(here)


def test_a_published_file_makes_room_and_is_still_known(here: Workspace, there: Workspace) -> None:
    write(here, shards__0_tar="12345", **{"shards___done__0.done.json": "m"})
    tar, marker = here.root / "shards/0_tar", here.root / "shards/_done/0.done.json"
    here.publish([tar], marker)
    assert not tar.exists()
    assert here.size(tar) == 5
    here.push()  # what is not here any more on purpose is no deletion
    assert stored(here) == {"shards/0_tar", "shards/_done/0.done.json"}
    assert here.names(here.root / "shards") == ["0_tar"]
    assert here.fetch(tar).read_text() == "12345"
    other = there.root / "shards/0_tar"
    assert there.size(other) == 5
    assert there.fetch(other).read_text() == "12345"
    with pytest.raises(FileNotFoundError):
        there.fetch(there.root / "nothing")
    assert there.size(there.root / "nothing") is None


def test_following_takes_news_and_leaves_what_was_changed_here(here: Workspace, there: Workspace) -> None:
    write(here, train__log="1", train__big="1" * 100, train__mine="1")
    here.push()
    there.pull(there.root / "train", changed=True, most=50)
    assert tree(there) == {"train/log": "1", "train/mine": "1"}
    write(here, train__log="12", train__mine="12")
    here.push()
    write(there, train__mine="another")
    there.pull(there.root / "train", changed=True, most=50)
    assert tree(there) == {"train/log": "12", "train/mine": "another"}


def test_a_folder_is_removed_whole_whatever_of_it_is_here(here: Workspace, there: Workspace) -> None:
    write(here, train__checkpoint__a="1", train__checkpoint__b="2", train__log="3", train__checkpoint2="4")
    here.push()
    there.pull(there.root, without=["b"])
    there.remove(there.root / "train/checkpoint")
    assert tree(there) == {"train/log": "3", "train/checkpoint2": "4"}
    assert stored(there) == {"train/log", "train/checkpoint2"}


def test_paths_know_the_copy_that_they_lie_in(url: str, tmp_path: Path) -> None:
    workspace = workspace_of(url, StorageConfig(scratch=str(tmp_path / "scratch")))
    assert workspace == workspace_of(f"{url}/", StorageConfig(scratch=str(tmp_path / "scratch")))
    attach(workspace)
    try:
        path = workspace.root / "corpus/a"
        workspace.store.put("corpus/a", b"123")
        assert at(path) == workspace
        assert size_of(path) == 3
        assert fetched(path).read_bytes() == b"123"
        assert shown(path) == f"{url}/corpus/a"
        assert names_in(path.parent) == ["a"]
        assert at(tmp_path) is None
        assert shown(tmp_path) == str(tmp_path)
    finally:
        detach(workspace)
    assert at(path) is None
