"""Debian's PostgreSQL on loopback, in a folder of its own, for as long as a test needs it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.servers import free_port

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
PASSWORD = "of the database/%40"
"""With letters that have to be escaped in an address, and one that looks as if it were."""
ESCAPED = "of%20the%20database%2F%2540"


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a fresh database, password in it. Skips where there is no PostgreSQL, or nobody who may run it."""
    if not (BIN / "initdb").exists():
        pytest.skip("PostgreSQL is not installed here")
    as_somebody: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if not shutil.which("setpriv") or subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
            pytest.skip("root has no user to run PostgreSQL as")
        as_somebody = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    folder, port = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), free_port()  # which that user can reach
    try:
        (folder / "password").write_text(PASSWORD)
        if as_somebody:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres")
        made = [*as_somebody, BIN / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run([*made, "--pwfile", folder / "password"], cwd=folder, check=True, capture_output=True)
        started = [*as_somebody, BIN / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        with (folder / "log").open("wb") as log, subprocess.Popen(started, cwd=folder, stdout=log, stderr=log) as server:
            try:
                ready = [BIN / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
                while subprocess.run(ready, capture_output=True, check=False).returncode:
                    assert server.poll() is None, (folder / "log").read_text()
                    time.sleep(0.2)
                yield f"postgresql+psycopg2://mlflow:{ESCAPED}@127.0.0.1:{port}/postgres"
            finally:
                server.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
