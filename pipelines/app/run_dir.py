"""The folder of a run: one config, one process at a time."""

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from filtering.files import digest_of, write_text
from pipelines.app.config import ConfigError, flatten, from_dict, to_dict
from pipelines.app.settings import Config
from pipelines.app.values import yaml_of

EXECUTION_KEYS = (
    *("run_dir", "session", "tracking", "download.fetch", "download.target"),
    *("evaluate.unreadable", "evaluate.use_gpu", "evaluate.window_batch"),
)
"""Keys that say where and how work is done, recorded and fetched. They may change from one start of a run to the next: what
of a download they touch, the download finds out itself."""

CHANGEABLE_KEYS = ("download.image", "download.shard_size", "methods", "evaluate.bootstrap", "evaluate.oracle")
"""Keys that say what is done and may change all the same: the stages that they touch begin anew as far as they must."""

CONFIG_FILE = "config.yaml"
SWEEP_FOLDERS = ("cells", "shared")
"""Where a sweep keeps its runs, below its own folder."""


@contextmanager
def open_run_dir(config: Config, config_file: Path | None) -> Iterator[Config]:
    """Hold the run's folder: yields `config` with its absolute `run_dir`. Raises ConfigError where it cannot be used."""
    folder = run_folder(config, config_file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f"run_dir: {folder} cannot be written ({error.strerror}); choose another with run_dir=FOLDER"
        ) from None
    try:
        _take(lock, folder)
        config = replace(config, run_dir=str(folder))
        prepare_run_dir(config)
        yield config
    finally:
        os.close(lock)


def prepare_run_dir(config: Config) -> None:
    """Write the resolved config into the run's folder, or refuse the folder if another run's config is there.

    A folder where no stage is complete belongs to no run yet: a mistake in the first config can be mended.
    """
    refuse_other_run(config)
    _write(Path(config.run_dir) / CONFIG_FILE, config)


def refuse_other_run(config: Config) -> None:
    """Raise ConfigError where the run's folder holds a run of another config."""
    file = Path(config.run_dir) / CONFIG_FILE
    if not file.exists() or not holds_run(file.parent):
        return
    try:
        there = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        there = None
    try:
        there = to_dict(from_dict(Config, there))  # a key that is newer than the folder had its default's effect
    except ConfigError as error:
        raise ConfigError(
            f"run_dir: {config.run_dir} holds a run of another version ({error}); finish it with that version or choose "
            "another with run_dir=FOLDER"
        ) from None
    except TypeError:  # no mapping: a damaged file, different in all its keys
        pass
    before, now = (dict(_without(tree, (*EXECUTION_KEYS, *CHANGEABLE_KEYS))) for tree in (there, to_dict(config)))
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key, "absent") != now.get(key, "absent"):
            raise ConfigError(
                f"run_dir: {config.run_dir} holds a run of another config: '{key}' was {before.get(key, 'absent')} and is now "
                f"{now.get(key, 'absent')}; choose another with run_dir=FOLDER or delete that one"
            )


def holds_run(folder: Path) -> bool:
    """Whether the folder is a run's own: a stage is complete, or it is a sweep's, which keeps its runs below."""
    return holds_single_run(folder) or any((folder / name).is_dir() for name in SWEEP_FOLDERS)


def holds_single_run(folder: Path) -> bool:
    """Whether a stage of a run is complete."""
    return any(folder.glob("*.done.json"))


def digest_of_run(config: Config) -> str:
    """SHA-256 of what the run is: the same wherever it is done and recorded."""
    return digest_of(dict(_without(to_dict(config), EXECUTION_KEYS)))


def run_folder(config: Config, config_file: Path | None) -> Path:
    """The absolute path of the run's folder."""
    folder = Path(config.run_dir or Path("runs") / (config_file.stem if config_file else "default")).expanduser()
    here = Path.cwd()
    if "working_dir_files" in here.parts:  # a submitted job runs in a copy of the code, which Ray deletes when it likes
        here = Path.home()
    return (here / folder).resolve()


def _take(lock: int, folder: Path) -> None:
    """Lock the folder until this process ends, however it ends."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
        raise ConfigError(
            f"run_dir: {folder} is in use by {holder}; wait for it or choose another with run_dir=FOLDER"
        ) from None
    os.truncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _without(tree: object, left_out: Sequence[str]) -> Iterator[tuple[str, object]]:
    for key, value in flatten(tree if isinstance(tree, dict) else {}):
        if not any(f"{key}.".startswith(f"{section}.") for section in left_out):
            yield key, value


def _write(file: Path, config: Config) -> None:
    write_text(file, yaml_of(to_dict(config)))
