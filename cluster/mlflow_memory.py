"""What a run's folder remembers of MLflow, in `mlflow.json`: the ids of its runs and models, and that they are its own."""

import json
import secrets
from pathlib import Path
from typing import Any

from cluster.store_uri import MEMORY
from filtering.files import write_json
from filtering.secrets import masked
from storage.client import is_object_store
from storage.copies import shown
from storage.understood import UNUSABLE, shaped

TOKEN = "folder.token"
"""Tag of a parent run: what the folder that went on with it last has written down, too."""

_SHAPE = {"run_id": str, "children": {str: str}, "folder": str, "tokens": [str], "models": {str: str}}


class Memory:
    """The store, the id of each run by name ("" is the parent's), and those of models by digest.

    `folder` is where it lies, `token` is new at each start, so that a copy of the folder is told from the folder itself.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str) -> None:
        self.file, self.uri, self.experiment = run_dir / MEMORY, uri, experiment
        self.folder = shown(run_dir.resolve()).rstrip("/")
        known = _read(self.file)
        self.folder_before, self._tokens = known.get("folder", ""), known.get("tokens", [])
        self._runs: dict[str, str] = {}
        self._models: dict[str, str] = {}
        if known.get("experiment") == experiment:
            self._runs = {"": known["run_id"], **known["children"]}
            self._models = known.get("models", {})

    def run_id(self, name: str) -> str:
        return self._runs.get(name, "")

    @property
    def run_ids(self) -> list[str]:
        """Of the parent and all of its children."""
        return list(self._runs.values())

    def child_id(self, name: str) -> str:
        """The id of the child of that name in whatever stage; empty where it is not begun."""
        return next((run_id for key, run_id in self._runs.items() if key.partition("/")[2] == name), "")

    def model_id(self, digest: str) -> str:
        return self._models.get(digest, "")

    def forget_model(self, digest: str) -> None:
        del self._models[digest]

    def forget(self) -> None:
        self._runs, self._models = {}, {}

    def is_copy(self, token: str) -> bool:
        """Whether this folder is a copy of one whose run it remembers. `token`: what the run's tag says.

        A folder that was moved is none: nothing is where it was.
        """
        if self.folder_before and self.folder != self.folder_before:
            # Of an object store's folder it is not known whether it was moved; a copy there has its own store with it.
            if is_object_store(self.folder_before):
                return True
            return _read(Path(self.folder_before) / MEMORY).get("run_id") == self._runs[""]
        # The same path on another machine. What was written to an object store last may have got lost with a machine.
        return bool(token and self._tokens) and token not in self._tokens and not is_object_store(self.folder)

    def own(self) -> str:
        """Make the parent's run this folder's; returns the token for its tag.

        The last one stays valid: this process may be killed before the tag is set.
        """
        token = secrets.token_hex(8)
        self._tokens = [*self._tokens[-1:], token]
        self._write()
        return token

    def remember(self, name: str, run_id: str) -> None:
        self._runs[name] = run_id
        self._write()

    def remember_model(self, digest: str, model_id: str) -> None:
        self._models[digest] = model_id
        self._write()

    def _write(self) -> None:
        children = {name: run_id for name, run_id in self._runs.items() if name}
        write_json(
            self.file,
            {
                "tracking_uri": masked(self.uri),
                "experiment": self.experiment,
                "run_id": self._runs[""],
                "children": children,
                "models": self._models,
                "folder": self.folder,
                "tokens": self._tokens,
            },
        )


def _read(file: Path) -> dict[str, Any]:
    """A memory; empty where there is none, or it is damaged."""
    try:
        known: dict[str, Any] = shaped({"folder": "", "tokens": [], "models": {}, **json.loads(file.read_bytes())}, _SHAPE)
    except UNUSABLE:
        return {}
    return known
