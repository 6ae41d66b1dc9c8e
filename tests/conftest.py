"""Fixtures that more than one test file needs."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from helpers.chain import PLANTED, Chain, run_well, summary
from helpers.download_web import Web

TESTS = Path(__file__).parent


LONG = ("chain", "test_job_submit.py", "test_sweep.py", "test_tracking.py", "test_checkpoint.py", "test_corpus_resume.py")
"""What takes longest, by group: begun first, so that no process of the tests is left with it in the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those of a file stay together, and all that look at the one run of the chain."""
    groups = {}
    for item in items:
        groups[item] = "chain" if "chain" in getattr(item, "fixturenames", ()) else item.path.relative_to(TESTS).as_posix()
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    items.sort(key=lambda item: next((place for place, name in enumerate(LONG) if groups[item].endswith(name)), len(LONG)))


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The whole chain in its smallest size, run once for all tests that look at it or go on from a copy of it."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        output = run_well("full", folder)
    return Chain(folder, output, summary(folder))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a small TCL of random weights, to be read only."""
    from helpers import tiny  # torch takes seconds to load, and most tests do without

    return tiny.write_run(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of 40 x 56 pixels, alone in its folder."""
    from helpers import tiny

    path = tmp_path / "photo.png"
    Image.fromarray(tiny.blocks(40, 56)).save(path)
    return path


@pytest.fixture
def web() -> Iterator[Web]:
    """The small real web server, fresh for each test."""
    with Web() as web:
        yield web
