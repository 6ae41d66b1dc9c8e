"""Addresses of MLflow stores: which the client takes, and which a run uses."""

import json
import os
import re
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster import InputError
from filtering.secrets import masked
from storage.copies import at

DATABASE, ARTIFACTS, MEMORY = "mlflow.db", "mlartifacts", "mlflow.json"
"""An SQLite store, the files of its runs beside it, and what a run's folder remembers of its own."""
COLUMNS_OF_FILES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Where an SQLite store says where files lie."""
LOCAL = "http://127.0.0.1:5000"
"""Where `make up` serves a store."""
CLASSIC = "workflowType=machine_learning"

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
FROM_ENVIRONMENT = "MLFLOW_TRACKING_URI"
"""MLflow's own variable, which counts where the settings name no store."""


def check_uri(uri: str, name: str = "uri") -> None:
    """Raise InputError that begins with `name` where MLflow's client has no store of such an address."""
    scheme, separator, rest = uri.partition(":")
    if uri == "databricks":
        return
    if scheme.lower() == "file" or not separator or "/" in scheme:
        raise InputError(
            f"{name}: MLflow keeps no runs in plain folders any more, and '{_shown(uri)}' names one; give sqlite:///FILE, "
            "http(s)://server:port, postgresql://... or leave it empty"
        )
    if scheme.lower().partition("+")[0] not in SCHEMES or not rest.startswith("//"):
        raise InputError(
            f"{name}: '{_shown(uri)}' is no MLflow store; give http(s)://server:port, sqlite:///file, "
            "postgresql://user:password@host/database, another database of SQLAlchemy's, databricks, or leave it empty"
        )
    if scheme.lower() == "sqlite" and not rest.removeprefix("///").partition("?")[0]:
        raise InputError(f"{name}: '{_shown(uri)}' names no file; give sqlite:///FILE")
    if scheme.lower() != "sqlite":
        _check_host(uri, name)


def _check_host(uri: str, name: str) -> None:
    try:
        parts = urlsplit(uri)
        usable = parts.port != 0 and (bool(parts.hostname) or not parts.scheme.startswith("http"))
    except ValueError:  # a port that is no number, or an unclosed [
        usable = False
    if not usable or any(letter.isspace() for letter in uri):
        raise InputError(
            f"{name}: '{_shown(uri)}' has no host and port that can be asked; a port is a number from 1 to 65535, and in a "
            "password / ? # @ and spaces are written as %2F %3F %23 %40 %20"
        )


def _shown(uri: str) -> str:
    """An address for messages: also of one with spaces in its password nothing secret is told."""
    return masked("%20".join(uri.split(" ")))


def store_uri(uri: str, run_dir: Path) -> str:
    """The store of a run: the one that is asked for, that of the environment, or the default one of its folder."""
    if not uri and (given := os.environ.get(FROM_ENVIRONMENT, "").strip()):
        check_uri(given, FROM_ENVIRONMENT)
        uri = given
    if uri.startswith("sqlite:///~"):
        return sqlite_uri(Path(unquote(uri.removeprefix("sqlite:///"))).expanduser())
    scheme, separator, rest = uri.partition(":")  # MLflow knows schemes in lower case alone
    return f"{scheme.lower()}{separator}{rest}" or sqlite_uri(default_store(run_dir.resolve()))


def default_store(run_dir: Path) -> Path:
    """The SQLite file of a run that names no store: beside its folder, so that runs there can be compared.

    Its own, in its folder, where it has one already, is a copy of an object store's, or nothing can be written beside it. A
    folder that was moved away from the others keeps the store that it was recorded in.
    """
    own, shared = run_dir / DATABASE, run_dir.parent / DATABASE
    if own.is_file() or at(run_dir):
        return own
    remembered = sqlite_file(remembered_uri(run_dir))
    if not shared.is_file() and remembered is not None and remembered.is_file():
        return remembered
    place = next(folder for folder in shared.parents if folder.exists())
    usable = os.access(place, os.W_OK) and (not shared.exists() or os.access(shared, os.W_OK))
    return shared if usable else own


def remembered_uri(run_dir: Path) -> str:
    """The store that a folder's `mlflow.json` names, without its secrets; empty where there is none."""
    try:
        return str(json.loads((run_dir / MEMORY).read_text(encoding="utf-8"))["tracking_uri"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite file, with what SQLAlchemy would read as its own signs escaped."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> Path | None:
    """The file of such an address; None of any other."""
    scheme, _, path = uri.partition(":///")
    return Path(unquote(path.partition("?")[0])) if scheme.partition("+")[0] == "sqlite" and path else None


def artifacts_here(database: Path) -> None:
    """Let an SQLite store that was moved or copied, maybe from another machine, name the files beside it here."""
    if not database.is_file():
        return
    folder = database.parent / ARTIFACTS
    here = folder.as_uri()
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(database)) as opened:  # MLflow says what is the matter
        there_are = {name for (name,) in opened.execute("select name from sqlite_master where type = 'table'")}
        columns = [(table, column) for table, column in COLUMNS_OF_FILES if table in there_are]  # older stores have fewer
        before = opened.execute(f"select artifact_location from experiments where artifact_location like 'file:%/{ARTIFACTS}'")
        for (there,) in before.fetchall():
            came_along = folder.is_dir() or not Path(unquote(urlsplit(there).path)).is_dir()
            for table, column in columns if there != here and came_along else ():
                change = f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?"
                opened.execute(change, (here, len(there) + 1, len(there), there))
        opened.commit()


def pages(uri: str, experiment_id: str, run_id: str) -> dict[str, str]:
    """The addresses of the experiment's table of runs and of a run on an MLflow server; none of other stores.

    Without the query MLflow opens its pages for language models, which have nothing of these runs.
    """
    if not uri.startswith("http"):
        return {}
    server = re.sub("//[^/]*@", "//", uri).rstrip("/")
    return {
        "runs": f"{server}/#/experiments/{experiment_id}/runs?{CLASSIC}",
        "run": f"{server}/#/experiments/{experiment_id}/runs/{run_id}?{CLASSIC}",
    }


def of_folder(folder: str) -> str:
    """The store of a run's folder, for `make up RUN_DIR=...`. Exits with one line where it is not to be opened here."""
    if "://" in folder:
        sys.exit(f"RUN_DIR: {folder} is no folder here; copy its mlflow.db and mlartifacts/ into one, and give that")
    run_dir = Path(folder).resolve()
    if (recorded := remembered_uri(run_dir)) and sqlite_file(recorded) is None:
        sys.exit(f"RUN_DIR: the runs of {folder} are recorded in {recorded}; open that")
    database = sqlite_file(recorded) if recorded else None
    database = database if database is not None and database.is_file() else default_store(run_dir)
    if not database.is_file():
        sys.exit(f"RUN_DIR: no run of {folder} is recorded yet; give the folder of a run (make up RUN_DIR=runs/demo)")
    artifacts_here(database)
    return sqlite_uri(database)


def page_of_folder(run_dir: Path, database: Path) -> str:
    """Where `make up` shows the run of a folder; the front page where it has none in this store."""
    with suppress(OSError, ValueError, KeyError, sqlite3.DatabaseError), closing(sqlite3.connect(database)) as opened:
        run_id = json.loads((run_dir / MEMORY).read_text(encoding="utf-8"))["run_id"]
        for (experiment_id,) in opened.execute("select experiment_id from runs where run_uuid = ?", (run_id,)):
            return pages(LOCAL, str(experiment_id), run_id)["run"]
    return LOCAL


if __name__ == "__main__":
    store = of_folder(sys.argv[1])
    found = sqlite_file(store)
    assert found is not None
    print(f"open {page_of_folder(Path(sys.argv[1]).resolve(), found)}", file=sys.stderr)
    print(store)
