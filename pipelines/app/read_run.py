"""A run's folder to be looked at: nothing in it is changed, and nobody is kept from working on it."""

from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

from pipelines.app.config import ConfigError, from_dict
from pipelines.app.object_store import LARGE
from pipelines.app.run_dir import CONFIG_FILE, is_sweep
from pipelines.app.run_files import named_folder, settings_in
from pipelines.app.settings import Config
from storage.client import StorageConfig, Store, is_object_store, use
from storage.copies import attach, workspace_of
from storage.understood import MISFITS

READING = "owseg-reading"
"""Folder of copies that are only read: a run that goes on at the same time has its own copy."""


def open_to_read(run: str, storage: StorageConfig) -> Path:
    """The folder of a run, or this machine's copy of one in an object store, without its large files.

    Raises ConfigError where it holds no run.
    """
    if not is_object_store(run):
        folder = named_folder(run).resolve()
        if not folder.is_dir():
            raise ConfigError(f"{run}: there is no such folder; give that of a run")
        return _checked(folder, run)
    use(storage)
    scratch = Path(storage.scratch or gettempdir()).expanduser() / READING
    workspace = workspace_of(run, replace(storage, scratch=str(scratch)))
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.records.mkdir(exist_ok=True)
    workspace.open(without=LARGE)
    attach(workspace)
    return _checked(workspace.root, run)


def ensure_run(run: str, storage: StorageConfig) -> None:
    """Raise ConfigError where there is no run, before its folder is made."""
    if not is_object_store(run):
        open_to_read(run, storage)
    elif Store(run, storage).head(CONFIG_FILE) is None:
        raise ConfigError(f"{run}: holds no run ({CONFIG_FILE} is missing); give the folder of one")


def _checked(folder: Path, run: str) -> Path:
    if is_sweep(folder):
        raise ConfigError(f"{run}: is a sweep's folder; give that of one of its runs, in cells/")
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{run}: holds no run ({CONFIG_FILE} is missing); give the folder of one")
    return folder


def config_of(folder: Path) -> Config:
    """The settings of the run in a folder. Raises InputError where it has none, ConfigError for those of another version."""
    file = folder / CONFIG_FILE
    try:
        tree = settings_in(file.read_bytes(), str(file))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        config = from_dict(Config, tree, source=str(file))
    except MISFITS as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file}: is not this version's ({reason}); look with the one that wrote it") from None
    return replace(config, run_dir=str(folder))
