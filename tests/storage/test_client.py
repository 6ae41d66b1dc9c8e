"""An object store as the client shows it: whole writes, conditional ones, patience, and mistakes in a line."""

import logging
import pickle
import uuid
from pathlib import Path

import pytest

from helpers.s3 import KEY, S3, SECRET, Fault
from storage import InputError
from storage.client import StorageConfig, Store

BRIEF = StorageConfig(patience=0.0)


@pytest.fixture
def store(s3: S3) -> Store:
    return Store(f"{s3.make_bucket(f'b-{uuid.uuid4().hex}')}/run one")


def test_objects_come_back_as_they_were_written(store: Store, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 50_000)  # more than one part of an upload
    store.put("a/b.json", b"hello")
    store.put("empty.txt", b"")
    version = store.put("a/large", large)
    assert (store.get("a/b.json"), store.get("empty.txt"), store.get("nothing")) == (b"hello", b"", None)
    assert store.get_range("a/b.json", 1, 3) == b"ell"
    got = store.download("a/large", tmp_path / "copy")
    assert got is not None
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()
    assert got.tag == version.tag
    assert {entry.name: entry.bytes for entry in store.entries("a")} == {"a/b.json": 5, "a/large": 12_800_000}
    assert store.folders() == ["a"]
    assert [entry.name for entry in store.files()] == ["empty.txt"]
    store.delete("a/b.json", "never there")
    assert store.head("a/b.json") is None
    with pytest.raises(FileNotFoundError):
        store.get_range("a/b.json", 0, 1)


def test_a_conditional_write_gives_way_to_what_is_there(store: Store) -> None:
    first = store.create("lease", b"mine")
    assert first is not None
    assert store.create("lease", b"theirs") is None
    second = store.update("lease", b"mine again", first)
    assert second is not None
    assert store.update("lease", b"late", first) is None
    assert store.get("lease") == b"mine again"


@pytest.mark.parametrize(
    "fault", [Fault(status=503, code="SlowDown"), Fault(status=500, code="InternalError"), Fault(cut=True)]
)
def test_what_may_pass_is_asked_again(store: Store, s3: S3, fault: Fault) -> None:
    content = b"x" * 100_000
    store.put("a", content)
    before = len(s3.requests)
    s3.faults = lambda method, path, number: fault if number < before + 3 else None
    assert store.get("a") == content
    assert store.get_range("a", 10, 5) == b"xxxxx"


def test_a_store_that_stays_away_is_waited_for_and_told(store: Store, s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    store.put("a", b"1")
    before = len(s3.requests)
    s3.faults = lambda method, path, number: Fault(status=503, code="SlowDown") if number < before + 9 else None
    with caplog.at_level(logging.WARNING):
        assert store.get("a") == b"1"
    told = [record.getMessage() for record in caplog.records if record.name == "storage.client"]
    assert told == [
        f"{store.url}: the store does not answer (503 Service Unavailable); waiting for it",
        f"{store.url}: the store answers again",
    ]


def test_patience_ends_in_a_line_that_says_how_to_go_on(s3: S3) -> None:
    away = Store("s3://bucket/run", StorageConfig(endpoint="http://127.0.0.1:9", patience=0.0))
    with pytest.raises(InputError, match=r"^s3://bucket/run: the store did not answer for .*storage\.patience.*resumes$"):
        away.get("a")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(status=404, code="NoSuchBucket"), "there is no such bucket"),
        (Fault(status=403, code="AccessDenied"), "access is denied; the credentials need the right to write"),
        (Fault(status=400, code="ExpiredToken"), "the credentials have expired"),
        (Fault(status=403, code="InvalidAccessKeyId"), "the credentials are not valid there"),
        (Fault(status=400, code="AuthorizationHeaderMalformed"), r"another region; set storage\.region"),
        (Fault(status=301, code="PermanentRedirect"), r"another region; set storage\.region"),
    ],
)
def test_a_refusal_is_one_line_with_the_cure(store: Store, s3: S3, fault: Fault, told: str) -> None:
    s3.faults = lambda method, path, number: fault
    with pytest.raises(InputError, match=told) as caught:
        Store(store.url, BRIEF).put("a", b"1")
    line = str(caught.value)
    assert line.startswith(store.url)
    assert "\n" not in line
    assert KEY not in line
    assert SECRET not in line


def test_a_missing_bucket_is_a_mistake_and_not_a_missing_object(s3: S3) -> None:
    nowhere = Store("s3://no-such-bucket-anywhere/run", BRIEF)
    for ask in (lambda: nowhere.put("a", b"1"), lambda: nowhere.get("a"), lambda: list(nowhere.entries())):
        with pytest.raises(InputError, match="there is no such bucket"):
            ask()


def test_no_credential_travels_with_a_store(store: Store) -> None:
    assert store.get("nothing") is None  # the client has read them by now
    packed = pickle.dumps(store)
    assert SECRET.encode() not in packed
    assert KEY.encode() not in packed
    travelled = pickle.loads(packed)
    assert travelled == store
    assert vars(travelled).keys() == {"url", "config"}, "the client, which may hold credentials, is made where it is used"
