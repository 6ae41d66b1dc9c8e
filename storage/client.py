"""An object store at a URL: S3, Google Cloud Storage, Azure, and whatever speaks their protocols.

Writes are whole or not there, and may be conditional. What may pass by itself is tried again, and a store that stays away is
waited for, with a line that says so.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from storage import InputError
from storage.errors import passes, refused, short

logger = logging.getLogger(__name__)

_URL = re.compile(r"(s3|s3a|gs|az|azure|abfs|abfss|adl)://[^/]+")
_ODD = re.compile(r"[#?%\x00-\x1f]|//|(?:^|/)\.\.?(?:/|$)")
"""What the client would take for a sign of its own, so that two names were one."""
RETRIES = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
"""Of the client, which asks again at once; what lasts longer is waited for here."""
LONGEST_WAIT = 30.0
TELL_AGAIN_SECONDS = 60.0
BRIEF_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How object stores are reached. Credentials are none of it: each machine takes them from its own environment."""

    endpoint: str = ""
    """Address of a store other than the provider's own, such as http://10.0.0.7:9000; "" = AWS_ENDPOINT_URL, or theirs."""
    region: str = ""
    """Region of the bucket; "" = AWS_REGION or AWS_DEFAULT_REGION."""
    anonymous: bool = False
    """Ask without credentials, for public buckets."""
    scratch: str = ""
    """Folder on each machine's own disk for copies of what lies in object stores, the same path on all of them; "" = a folder
    owseg-scratch-UID in the temporary one."""
    cache_gb: float = 100.0
    """Room on each machine's disk for shards that are trained on, in 10^9 bytes; those of other trainings make room."""
    patience: float = 600.0
    """Seconds that a store that does not answer is waited for before the run stops."""

    def __post_init__(self) -> None:
        if self.patience < 0 or self.cache_gb < 0:
            raise InputError("patience and cache_gb must not be negative")
        if self.endpoint and not re.fullmatch(r"https?://[^/@]+(/[^@?#]*)?", self.endpoint):
            raise InputError("endpoint must be an address such as https://host:9000, without credentials in it")


def is_object_store(path: str | Path) -> bool:
    """Whether a path is a URL of an object store, such as s3://bucket/folder."""
    return bool(_URL.match(str(path)))


class Version(NamedTuple):
    """One version of an object. The tag changes with the content; some stores count versions as well."""

    tag: str
    number: str | None = None

    @property
    def mode(self) -> dict[str, str | None]:
        """As the client names it in a conditional write."""
        return {"e_tag": self.tag, "version": self.number}


class Entry(NamedTuple):
    """An object: its name below the store's URL, size in bytes, version, and when it was written by the store's clock."""

    name: str
    bytes: int
    version: Version
    written: datetime

    @property
    def tag(self) -> str:
        """What changes with the content."""
        return self.version.tag


_in_effect = StorageConfig()


def use(config: StorageConfig) -> None:
    """Reach stores like this in this process, wherever nothing else is said."""
    global _in_effect
    _in_effect = config


def in_effect() -> StorageConfig:
    """What `use` was told last."""
    return _in_effect


@dataclass(frozen=True)
class Store:
    """The objects below `url`. Cheap to make and to send to another machine; no credentials travel with it.

    Every method raises InputError, one line, for what the user must mend, and after `patience` seconds without an answer. Not
    to be used in a process that was forked from one that used it: the client has threads.
    """

    url: str
    config: StorageConfig = field(default_factory=in_effect)

    def __post_init__(self) -> None:
        bucket, _, folder = self.url.partition("://")[2].partition("/")
        if not bucket or "@" in bucket or ":" in bucket or _ODD.search(bucket) or _ODD.search(folder):
            raise InputError(
                f"{masked_user(self.url)}: no credentials, and none of '#', '?', '%', '//', '.', '..' and control characters "
                "as or in a folder's name, may be in the URL of an object store; give another"
            )

    def get(self, name: str) -> bytes | None:
        """An object's content; None where there is none."""
        return self._asked("read", lambda: bytes(obstore.get(self._client, name).bytes()))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on. Raises FileNotFoundError where there is none."""
        if not length:
            return b""
        found = self._asked("read", lambda: bytes(obstore.get_range(self._client, name, start=start, length=length)))
        if found is None:
            raise FileNotFoundError(2, os.strerror(2), f"{self.url}/{name}")
        return found

    def download(self, name: str, path: Path) -> Entry | None:
        """Write an object's content to `path`; None where there is none. Not whole-or-nothing: give a temporary name."""

        def copy() -> Entry:
            found = obstore.get(self._client, name)
            with path.open("wb") as file:
                for chunk in found.stream(min_chunk_size=1 << 20):
                    file.write(chunk)
                written = file.tell()
            if written != found.meta["size"]:
                raise ConnectionError(f"Connection closed after {written} of {found.meta['size']} bytes")
            return _entry(found.meta)

        return self._asked("read", copy)

    def head(self, name: str) -> Entry | None:
        """What the store knows of an object; None where there is none."""
        return self._asked("read", lambda: _entry(obstore.head(self._client, name)))

    def put(self, name: str, content: bytes | Path) -> Version:
        """Write an object, whole. A path stands for the file's content."""
        written = self._put(name, content, "overwrite")
        assert written is not None
        return written

    def create(self, name: str, content: bytes) -> Version | None:
        """Write an object where there is none; None where there is one."""
        return self._put(name, content, "create")

    def update(self, name: str, content: bytes, before: Version) -> Version | None:
        """Write an object in the place of a version of it; None where there is another one by now."""
        return self._put(name, content, {key: value for key, value in before.mode.items() if value})

    def _put(self, name: str, content: bytes | Path, mode: Any) -> Version | None:
        def put() -> Version | None:
            try:
                written = obstore.put(self._client, name, content, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return None
            return Version(str(written["e_tag"]), written["version"])

        return self._asked("write", put, missing=True)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The objects whose names begin with the folder `prefix`, in any order."""
        found = self._asked("list", lambda: [_entry(one) for one in obstore.list(self._client, prefix or None).collect()])
        yield from _without_markers(found or [])

    def files(self, folder: str = "") -> list[Entry]:
        """The objects directly in a folder."""
        found = self._asked("list", lambda: obstore.list_with_delimiter(self._client, folder or None)["objects"])
        return _without_markers([_entry(one) for one in found or []])

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders directly in a folder."""
        found = self._asked("list", lambda: obstore.list_with_delimiter(self._client, folder or None)["common_prefixes"])
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in found or []]

    def delete(self, *names: str) -> None:
        """Remove objects; those that are not there are none the less gone."""

        def delete() -> None:
            for start in range(0, len(names), 1000):
                try:
                    obstore.delete(self._client, list(names[start : start + 1000]))
                except FileNotFoundError:
                    for name in names[start : start + 1000]:
                        _delete(self._client, name)

        self._asked("delete", delete)

    @property
    def brief(self) -> "Store":
        """The same for what is not worth a long wait."""
        return replace(self, config=replace(self.config, patience=min(self.config.patience, BRIEF_SECONDS)))

    @cached_property
    def _client(self) -> Any:
        options = {"timeout": "1h", "read_timeout": "30s", "connect_timeout": "5s"}
        given: dict[str, Any] = {}
        if self.config.endpoint:
            given["base_url" if self.url.startswith("gs:") else "endpoint"] = self.config.endpoint
        if self.config.region and self.url.startswith("s3"):
            given["region"] = self.config.region
        if self.config.anonymous:
            given["skip_signature"] = True
        if (self.config.endpoint or os.environ.get("AWS_ENDPOINT_URL", "")).startswith("http://"):
            options["allow_http"] = "true"
        try:
            opened: Any = from_url  # its overloads list the settings of each store
            return opened(
                self.url, config=given or None, client_options=options, retry_config=RETRIES, **_credentials(self.url)
            )
        except (BaseError, ValueError, TypeError) as error:
            raise InputError(f"{self.url}: cannot be opened ({short(error)})") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "config": self.config}

    def _asked(self, need: str, ask: Callable[[], T], *, missing: bool = False) -> T | None:
        """What the store answers; None for an object that is not there, unless it is a mistake that something is `missing`."""
        began = told = None
        wait = 0.5
        while True:
            try:
                found = ask()
            except FileNotFoundError as error:
                if mistake := refused(self.url, error, need):
                    raise mistake from None
                if missing:
                    raise InputError(f"{self.url}: {short(error)}") from None
                return None
            except (BaseError, ConnectionError) as error:
                if mistake := refused(self.url, error, need):
                    raise mistake from None
                now = time.monotonic()
                began = began or now
                if not passes(error):
                    raise InputError(f"{self.url}: the store refuses to {need}: {short(error)}") from None
                if now - began >= self.config.patience:
                    raise InputError(
                        f"{self.url}: the store did not answer for {now - began:.0f} s (storage.patience): {short(error)}; "
                        "look at it and at the network, then run the same command again: it resumes"
                    ) from None
                if told is None or now - told >= TELL_AGAIN_SECONDS:
                    told = now
                    logger.warning("%s: the store does not answer (%s); waiting for it", self.url, short(error))
                time.sleep(min(wait, LONGEST_WAIT, max(0.1, self.config.patience - (now - began))))
                wait *= 2
                continue
            if told is not None:
                logger.warning("%s: the store answers again", self.url)
            return found


def masked_user(url: str) -> str:
    """A URL without what may be a password in it."""
    return re.sub(r"//[^/]*@", "//", url)


def _without_markers(entries: list[Entry]) -> list[Entry]:
    """Without the empty objects by which consoles show folders: they end with a slash, which the client does not tell."""
    folders = {parent for entry in entries for parent in _parents(entry.name)}
    return [one for one in entries if one.bytes or (one.name not in folders and "." in one.name.rpartition("/")[2])]


def _parents(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition("/")[0]
        yield name


def _delete(client: Any, name: str) -> None:
    try:
        obstore.delete(client, name)
    except FileNotFoundError:
        return


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], Version(str(meta["e_tag"]), meta["version"]), meta["last_modified"])


def _credentials(url: str) -> dict[str, Any]:
    """Credentials of an AWS profile, which the client itself does not read; those in the environment come first."""
    named = os.environ.get("AWS_PROFILE") or Path("~/.aws/credentials").expanduser().is_file()
    if not url.startswith("s3") or "AWS_ACCESS_KEY_ID" in os.environ or not named:
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    return {"credential_provider": Boto3CredentialProvider()}
