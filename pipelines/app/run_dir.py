"""The folder of a run: one config, one process at a time."""

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filtering import InputError
from filtering.files import digest_of, write_text
from filtering.secrets import holds_mask, masked, masked_tree
from owseg.fit import WEIGHTS
from pipelines.app.config import ConfigError, flatten, from_dict, to_dict
from pipelines.app.evaluated import fingerprint_of
from pipelines.app.object_store import held_copy, inputs_here
from pipelines.app.registered import registered_here
from pipelines.app.roles import comparable, roles_of, settings_that_decide
from pipelines.app.run_files import settings_in
from pipelines.app.settings import Config
from pipelines.app.stage_marker import read_marker
from pipelines.app.values import yaml_of
from storage.client import is_object_store, use
from storage.copies import with_urls

CONFIG_FILE = "config.yaml"
SOURCE = "filter.source.path"
SWEEP_FOLDERS = ("cells", "shared")
"""Where a sweep keeps its runs, below its own folder."""


@contextmanager
def open_run_dir(config: Config, config_file: Path | None, *, restart: bool = False) -> Iterator[Config]:
    """Hold the run's folder: yields `config` with its absolute `run_dir`. Raises ConfigError where it cannot be used.

    restart: what was trained there with other settings is no reason.
    """
    with held_folder(config, config_file) as folder:
        config = replace(config, run_dir=str(folder))
        prepare_run_dir(config, restart=restart)
        yield inputs_here(registered_here(config))


@contextmanager
def held_folder(config: Config, config_file: Path | None) -> Iterator[Path]:
    """Hold the folder of a run, here or in an object store, which no other process may write meanwhile; yields its path here.

    Raises ConfigError where it cannot be used.
    """
    use(config.storage)
    if "://" in config.run_dir and not is_object_store(config.run_dir) and not config.run_dir.startswith("file://"):
        raise ConfigError(
            f"run_dir: {config.run_dir} is no folder and no store that is known; give a path, or s3://, gs:// or az://"
        )
    if is_object_store(config.run_dir):
        with held_copy(config.run_dir, config.storage) as folder, _locked(folder):
            yield folder
    else:
        folder = run_folder(config, config_file)
        with _locked(folder):
            yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f"run_dir: {folder} cannot be written ({error.strerror}); choose another with run_dir=FOLDER"
        ) from None
    try:
        _take(lock, folder)
        yield
    finally:
        os.close(lock)


def prepare_run_dir(config: Config, *, restart: bool = False) -> None:
    """Write the resolved config into the run's folder, or refuse the folder if another run's config is there.

    A folder where no stage is complete belongs to no run yet: a mistake in the first config can be mended.
    """
    refuse_other_run(config, restart=restart)
    for key, value in flatten(to_dict(config)):
        if isinstance(value, str) and holds_mask(value):
            raise ConfigError(f"{key}: {masked(value)} was copied from a record, where secrets are masked; give it in full")
    _write(Path(config.run_dir) / CONFIG_FILE, config)


def refuse_other_run(config: Config, *, restart: bool = False) -> None:
    """Raise ConfigError where the run's folder holds a run of another config, or (restart) of another corpus."""
    file = Path(config.run_dir) / CONFIG_FILE
    if not file.exists() or not holds_run(file.parent):
        return
    try:
        there = settings_in(file.read_bytes(), str(file))
        there = masked_tree(to_dict(from_dict(Config, there)))  # a key newer than the folder had its default's effect
    except ConfigError as error:
        raise ConfigError(
            f"run_dir: {config.run_dir} holds a run of another version ({error}); finish it with that version or choose "
            "another with run_dir=FOLDER"
        ) from None
    except (InputError, OSError):  # a damaged file, different in all its keys
        there = {}
    for key, before, now in _differences(there, masked_tree(to_dict(config))):
        if _is_made_by(key, file.parent) and not (key == SOURCE and _is_corpus_of(config)):
            of_training = roles_of(key) <= {"train", "evaluate"} and not is_sweep(file.parent)
            if restart and of_training:
                continue
            or_else = "train anew in it with --restart, which keeps what is trained" if of_training else "delete that one"
            raise ConfigError(
                f"run_dir: {config.run_dir} holds a run of another config: '{key}' was {before} and is now {now}; "
                f"choose another with run_dir=FOLDER or {or_else}"
            )


def _differences(there: Mapping[str, object], here: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    """Keys that decide, with their values in the folder and now, where these differ; secrets are masked in both."""
    before, now = (dict(settings_that_decide(tree)) for tree in (there, here))
    for key in [*now, *(key for key in before if key not in now)]:
        old, new = before.get(key, "absent"), now.get(key, "absent")
        if comparable(key, old) != comparable(key, new):
            yield key, old, new


def _is_made_by(key: str, folder: Path) -> bool:
    """Whether the folder holds what another value of the key made, and what could not stay beside what this one makes.

    What of a download changes, the download finds out itself; scores are made anew, but for those of a sweep, which compares.
    """
    if (training := _training_of(key, folder)) is not None:
        return is_sweep(folder) or (training / WEIGHTS).exists() or any(training.glob("checkpoints/checkpoint_*"))
    return bool(roles_of(key) & {"filter", "train"}) or is_sweep(folder)


def _training_of(key: str, folder: Path) -> Path | None:
    """The folder of the training that a method's setting has a say in; None of other keys."""
    section, _, rest = key.partition(".")
    return folder / "train" / rest.partition(".")[0] if section == "method_settings" and "train" in roles_of(key) else None


def _is_corpus_of(config: Config) -> bool:
    """Whether the complete corpus of the run's folder is of the very links that the config names: they have moved."""
    try:
        return read_marker(Path(config.run_dir), "filter", fingerprint_of(config, config.filter)) is not None
    except InputError:  # there is no such source
        return False


def holds_run(folder: Path) -> bool:
    """Whether the folder is a run's own: a stage is complete, or it is a sweep's, which keeps its runs below."""
    return holds_single_run(folder) or is_sweep(folder)


def is_sweep(folder: Path) -> bool:
    """Whether a sweep keeps its runs below the folder."""
    return any((folder / name).is_dir() for name in SWEEP_FOLDERS)


def holds_single_run(folder: Path) -> bool:
    """Whether a stage of a run is complete."""
    return any(folder.glob("*.done.json"))


def digest_of_run(config: Config) -> str:
    """SHA-256 of what the run is: the same wherever and however it is done and recorded, and with another password."""
    return digest_of(masked_tree(dict(settings_that_decide(config))))


def run_folder(config: Config, config_file: Path | None) -> Path:
    """The absolute path of the run's folder."""
    given = config.run_dir.removeprefix("file://")
    folder = Path(given or Path("runs") / (config_file.stem if config_file else "default")).expanduser()
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


def recorded(config: Config) -> dict[str, object]:
    """The settings as they are kept: what lies in object stores goes by its URL, and where its copies lie is the machine's."""
    tree = {key: _by_url(value) for key, value in to_dict(config).items()}
    return {**tree, "storage": {**tree["storage"], "scratch": ""}}


def _by_url(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _by_url(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_by_url(one) for one in value]
    return with_urls(value) if isinstance(value, str) else value


def _write(file: Path, config: Config) -> None:
    write_text(file, yaml_of(masked_tree(recorded(config))))
