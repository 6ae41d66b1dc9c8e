"""A store for the tests of this folder, with its address in the environment."""

from collections.abc import Iterator

import pytest

from helpers.s3 import S3, s3_server


@pytest.fixture(scope="session")
def server() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server, well again after each test."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.requests.clear()
    yield server
    server.faults = lambda method, path, number: None
