"""Tars that a user has already (`train.shards`): any WebDataset, img2dataset's among them, trained on as they are."""

import glob
from pathlib import Path

from cluster.progress import Progress
from filtering.files import digest_of
from filtering.link_set import forgotten_in
from owseg import InputError
from owseg.listing import files_below
from pipelines.app.context import Result
from pipelines.app.settings import Config
from storage.client import in_effect, is_object_store
from storage.copies import attach, names_in, pull_small, workspace_of
from storage.indexes import Tell, indexes_of, read


def tars_at(given: str) -> list[Path]:
    """The tars that a folder and those in it hold, or that a pattern names, in order. InputError where there are none."""
    if is_object_store(given):
        return _tars_in_store(given)
    path = Path(given).expanduser().resolve()
    if path.is_dir():
        found = [file for file in files_below(path) if file.suffix == ".tar"]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if name.endswith(".tar")]
    if not found:
        what = "holds no .tar" if path.is_dir() else "is neither a folder nor a pattern that names a .tar"
        raise InputError(f'train.shards: {given} {what}; give a folder of WebDataset tars, or a pattern such as "tars/*.tar"')
    return sorted(found)


def _tars_in_store(url: str) -> list[Path]:
    """Those directly in a folder of an object store, by their places in this machine's copy, which has none of them."""
    workspace = workspace_of(url, in_effect())
    attach(workspace)
    pull_small(workspace.root)
    found = [workspace.root / name for name in names_in(workspace.root) if name.endswith(".tar")]
    if not found:
        raise InputError(f"train.shards: {url} holds no .tar; give the folder that has them")
    return found


def own_shards(config: Config) -> Result:
    """What training asks of shards: the digest of what they hold, but for what is forgotten. Tars without an index get one."""
    tars = tars_at(config.train.shards)
    with Progress("index", total=len(tars), unit="tars") as progress:
        indexes = indexes_of(tars, _shown(progress, len(tars)))
    told = [[index.tar.name, index.header.digest.hex()] for index in indexes]
    return {"digest": digest_of([*told, *(["without", key] for key in forgotten_keys(config))])}


def forgotten_keys(config: Config) -> tuple[str, ...]:
    """The keys of samples in tars of the user's own that the run is to leave out, in order; its own shards lack theirs."""
    forgotten = forgotten_in(Path(config.run_dir))
    if not config.train.shards or not forgotten:
        return ()
    indexes = map(read, indexes_of(tars_at(config.train.shards)))
    keys = {index.key(number) for index in indexes for number in range(index.header.samples)}
    return tuple(sorted(keys & forgotten.ids))


def _shown(progress: Progress, tars: int) -> Tell:
    def tell(made: int, missing: int, samples: int) -> None:
        progress.update(tars - missing + made, f"{samples} samples")

    return tell
