"""Addresses of MLflow stores: which the client takes, and which a run uses."""

import os
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster import InputError
from filtering.secrets import masked

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
    """The store of a run: the one that is asked for, that of the environment, or mlflow.db in the run's folder."""
    if not uri and (given := os.environ.get(FROM_ENVIRONMENT, "").strip()):
        check_uri(given, FROM_ENVIRONMENT)
        uri = given
    if uri.startswith("sqlite:///~"):
        return sqlite_uri(Path(unquote(uri.removeprefix("sqlite:///"))).expanduser())
    scheme, separator, rest = uri.partition(":")  # MLflow knows schemes in lower case alone
    return f"{scheme.lower()}{separator}{rest}" or sqlite_uri(run_dir.resolve() / "mlflow.db")


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite file, with what SQLAlchemy would read as its own signs escaped."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> Path | None:
    """The file of such an address; None of any other."""
    scheme, _, path = uri.partition(":///")
    return Path(unquote(path.partition("?")[0])) if scheme.partition("+")[0] == "sqlite" and path else None


if __name__ == "__main__":  # for `make up RUN_DIR=...`
    if "://" in sys.argv[1]:
        sys.exit(f"RUN_DIR: {sys.argv[1]} is no folder here; copy its mlflow.db and mlartifacts/ into one, and give that")
    print(sqlite_uri(Path(sys.argv[1]).resolve() / "mlflow.db"))
