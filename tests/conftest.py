"""Fixtures that more than one test file needs."""

import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.chain import PLANTED, Chain, run_well, summary
from helpers.download_web import Web

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _store_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow writes the store that it is told of into the environment: the next test has its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


LONG = (
    *("chain", "test_job_submit.py", "test_sweep.py", "test_engine.py", "test_equal_on_ranks.py", "test_tracking.py"),
    *("test_checkpoint.py", "cluster/test_evaluate.py", "test_corpus_resume.py"),
)
"""What takes longest, by group: begun first, so that no process of the tests is left with it in the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    groups = {item: group_of(item.path) for item in items}
    items.sort(key=lambda item: next((place for place, name in enumerate(LONG) if groups[item].endswith(name)), len(LONG)))


@cache
def group_of(file: Path) -> str:
    """The group of a file: itself, or "chain" where its tests look at the one run of the chain."""
    return "chain" if "chain: Chain" in file.read_text(encoding="utf-8") else file.relative_to(TESTS).as_posix()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run in several processes, those of a group stay together, so that what they share is made once.

    xdist's own loadgroup does not do so with pytest 9: it writes groups where node ids are no longer read from.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(TESTS.parent / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return ByGroup(config, log)


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
