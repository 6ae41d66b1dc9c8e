"""What lies in the folders of this user in the temporary one is believed: nobody else may have made them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import InputError
from storage.client import StorageConfig
from storage.copies import attach, detach, workspace_of
from storage.private import make_private, private_path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return private_path("scratch")


def test_it_is_made_for_this_user_alone(folder: Path) -> None:
    make_private(folder)
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def of_somebody_else(folder: Path) -> None:
    folder.mkdir()
    try:
        os.chown(folder, os.getuid() + 1, -1)
    except PermissionError:
        pytest.skip("only root can give a folder away")


def a_link(folder: Path) -> None:
    folder.with_name("theirs").mkdir()
    folder.symlink_to(folder.with_name("theirs"))


@pytest.mark.parametrize("made_by", [open_to_all, of_somebody_else, a_link])
def test_a_folder_that_others_can_write_to_holds_no_copy(folder: Path, made_by: Callable[[Path], None]) -> None:
    """Replies to loader processes are pickled there."""
    made_by(folder)
    workspace = workspace_of("s3://bucket/run", StorageConfig())
    with pytest.raises(InputError, match="somebody else can write there; remove it, or set TMPDIR"):
        attach(workspace)
    detach(workspace)


def test_a_folder_that_the_user_names_is_the_users_business(tmp_path: Path, folder: Path) -> None:
    open_to_all(folder)
    workspace = workspace_of("s3://bucket/run", StorageConfig(scratch=str(tmp_path / "mine")))
    attach(workspace)
    detach(workspace)
    assert workspace.root.is_dir()
