"""A run's folder in an object store: this process works on a copy of it, holds it alone, and saves what it has done."""

import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.data import HEAVY
from cluster.store_uri import DATABASE, artifacts_here
from pipelines.app.config import from_dict, to_dict
from pipelines.app.settings import Config
from storage import InputError
from storage.client import StorageConfig, is_object_store
from storage.copies import at, attach, detach, workspace_of
from storage.lease import leased
from storage.workspace import RECORDS, Workspace, ensure_held

LARGE = ("checkpoints/*/*", *HEAVY)
"""What stays in the store until it is needed."""
FORGOTTEN_DAYS = 7
INPUTS = ("evaluate", "encoder", "weights", "init", "method_settings")
"""Sections whose files and folders may lie in object stores."""
SMALL_BYTES = 1 << 20
"""Files beside weights that may describe them."""


@contextmanager
def held_copy(url: str, config: StorageConfig) -> Iterator[Path]:
    """The folder of this machine's copy of a run's folder in a store, which no other process may write meanwhile.

    What was done is saved at the end, also where an error ends it. Raises InputError, one line, where the store cannot be used,
    or another process has the folder.
    """
    workspace = workspace_of(url, config)
    workspace.root.mkdir(parents=True, exist_ok=True)
    _forget_old(workspace)
    with leased(workspace.store, on_loss=lambda: os.kill(os.getpid(), signal.SIGTERM)) as lease:
        attach(workspace, apart=(f"{DATABASE}*",), ensure=lease.ensure_held)
        try:
            workspace.open(without=LARGE)
            artifacts_here(workspace.root / DATABASE)
            try:
                yield workspace.root
            except BaseException:
                with suppress(InputError):  # what ended the run is to be told, and soon
                    _save(replace(workspace, store=workspace.store.brief))
                raise
            _save(workspace)
            workspace.make_room()
            (workspace.root / DATABASE).unlink(missing_ok=True)  # the store has it
        finally:
            detach(workspace)


def save(run_dir: Path) -> None:
    """Bring the store to what is in a run's folder here; nothing for a plain folder."""
    if workspace := at(run_dir):
        _save(workspace)


def _save(workspace: Workspace) -> None:
    """MLflow's SQLite file is in use while the run goes on: a copy of it is saved, never the file itself."""
    ensure_held(workspace)
    database = workspace.root / DATABASE
    if database.is_file():
        with tempfile.TemporaryDirectory() as folder:
            backup = Path(folder) / DATABASE
            with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(backup)) as whole:
                live.backup(whole)
            workspace.store.put(DATABASE, backup)
    workspace.push()


def inputs_here(config: Config) -> Config:
    """The settings with this machine's copies of what they name in object stores: benchmarks, weights, models.

    Sources of links and the download's target are asked where they are.
    """
    tree = to_dict(config)
    for section in INPUTS:
        tree[section] = _here(tree[section], section, config.storage)
    return from_dict(Config, tree)


def _here(value: Any, key: str, config: StorageConfig) -> Any:
    if isinstance(value, dict):
        return {name: _here(one, f"{key}.{name}", config) for name, one in value.items()}
    if isinstance(value, list):
        return [_here(one, key, config) for one in value]
    return str(_copied(value, key, config)) if isinstance(value, str) and is_object_store(value) else value


def _copied(url: str, key: str, config: StorageConfig) -> Path:
    """This machine's copy of a file, with what describes it beside it, or of a folder."""
    parent, _, name = url.rstrip("/").rpartition("/")
    if parent.count("/") > 1:  # else the URL is a bucket
        beside = workspace_of(parent, config)
        if found := beside.pull_beside(name, SMALL_BYTES):
            attach(beside)
            return found
    workspace = workspace_of(url, config)
    workspace.open()
    if not workspace.root.is_dir() or not any(workspace.root.iterdir()):
        raise InputError(f"{key}: there is nothing at {url}; put it there, or correct the address")
    attach(workspace)
    return workspace.root


def _forget_old(workspace: Workspace) -> None:
    """Remove copies of other runs that nobody has worked on for days."""
    workspace.root.touch()
    workspace.records.mkdir(exist_ok=True)
    for records in workspace.root.parent.glob(f"*{RECORDS}"):
        folder = records.with_name(records.name.removesuffix(RECORDS))
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > FORGOTTEN_DAYS * 86_400:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(records, ignore_errors=True)
