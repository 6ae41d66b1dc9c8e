"""Servers that tests of the fetcher ask."""

from collections.abc import Iterator

import pytest

from helpers.download_web import Raw, answer


@pytest.fixture
def trap() -> Iterator[Raw]:
    """A server of the user's own network, that strangers' links must not reach."""
    with Raw(answer(b"secret")) as trap:
        yield trap
