"""One writer for a folder in an object store, also where the one before was killed."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from helpers.s3 import S3
from storage import InputError, lease
from storage.client import Store

HOLD = """
import sys
from storage.client import Store
from storage.lease import _taken
_taken(Store(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(s3: S3) -> Store:
    return Store(f"{s3.make_bucket(f'b-{uuid.uuid4().hex}')}/run")


def test_a_folder_has_one_writer(store: Store) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(InputError, match=rf"^run_dir: {store.url} is in use by process {holder.pid} on .*run_dir=URL$"),
        lease.leased(store),
    ):
        pass
    holder.kill()
    holder.communicate()
    with lease.leased(store):  # the holder is dead, on this very machine
        assert b'"pid"' in (store.get(lease.NAME) or b"")
    assert store.get(lease.NAME) is None


def test_a_lease_of_another_machine_ends_by_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(lease.NAME, json.dumps({"host": "elsewhere", "pid": 7, "boot": "another"}).encode())
    with pytest.raises(InputError, match="in use by process 7 on elsewhere"), lease.leased(store):
        pass
    monkeypatch.setattr(lease, "SECONDS", -1.0)
    with lease.leased(store):
        pass


def test_what_was_taken_over_is_not_written_any_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.02)
    with lease.leased(store) as held:
        held.ensure_held()
        store.put(lease.NAME, b"{}")
        held._thread.join(timeout=30)
        with pytest.raises(InputError, match="was taken over by another process"):
            held.ensure_held()
    assert store.get(lease.NAME) == b"{}"  # not ours to remove


def test_a_write_whose_answer_was_lost_is_ours(store: Store) -> None:
    store.put(lease.NAME, lease._content())
    with lease.leased(store):
        pass


def test_a_damaged_lease_counts_as_held_until_it_ends(store: Store, tmp_path: Path) -> None:
    store.put(lease.NAME, b"no json")
    with pytest.raises(InputError, match=r"in use by process \? on another machine"), lease.leased(store):
        pass
