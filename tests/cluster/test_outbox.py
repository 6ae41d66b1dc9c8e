"""Records that wait for a store: in order, not without bound, and counted where they are given up."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster import outbox
from cluster.outbox import Losses, Outbox, Parcel, Unreachable, close


class Store:
    """Takes entries, unless it is down or they are refused."""

    def __init__(self) -> None:
        self.taken: list[object] = []
        self.down = self.hanging = False
        self.only_down_for: object = None
        self.freed = threading.Event()

    def answers(self) -> bool:
        return not self.down

    def send(self, entries: list[object]) -> None:
        if self.hanging:
            self.freed.wait(30)
        if self.down or self.only_down_for in entries:
            raise Unreachable("http://u:secret@h does not answer")
        self.taken += entries

    def parcel(self, *entries: object, kind: str = "points", may_go: bool = True) -> Parcel:
        return Parcel(kind, [*entries], self.send, may_go=may_go)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(outbox, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE", 0.02)
    store = Store()
    yield store
    store.freed.set()


@pytest.fixture
def losses() -> Losses:
    return Losses()


@pytest.fixture
def box(store: Store, losses: Losses) -> Outbox:
    return Outbox(store.answers, losses, "test")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_an_outage_holds_back_comes_in_its_order(
    store: Store, box: Outbox, losses: Losses, caplog: pytest.LogCaptureFixture
) -> None:
    store.down = True
    for number in range(50):
        box.put(store.parcel(number, may_go=number % 3 > 0))
    assert not box.wait(0.1)
    assert store.taken == []
    assert box.left() == {"points": 50}
    store.down = False
    assert box.wait(20)
    assert store.taken == [*range(50)]
    close([box], losses)
    assert losses.counts == {}
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "MLflow does not answer, work continues and its records wait: http://u:***@h does not answer"
    assert told[1].startswith("MLflow answers again after ")
    assert len(told) == 2


def test_a_long_outage_costs_the_oldest_points_and_nothing_else(
    store: Store, box: Outbox, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_WAITING", 10)
    store.down = True
    box.put(store.parcel("end of a run", kind="run status", may_go=False))
    until(lambda: box.down)
    for number in range(40):
        box.put(store.parcel(number))
    store.down = False
    assert box.wait(20)
    assert store.taken == ["end of a run", *range(31, 40)]
    assert losses.counts == {"points": 31}


def test_what_fails_alone_though_the_store_answers_is_given_up_alone(
    store: Store, box: Outbox, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "SECONDS_FOR_ONE", 0.05)
    store.only_down_for = "poison"
    for entry in ("a", "poison", "b"):
        box.put(store.parcel(entry, may_go=False))
    assert box.wait(20)
    assert store.taken == ["a", "b"]
    assert losses.counts == {"points": 1}


def test_a_bug_in_sending_costs_one_parcel(store: Store, box: Outbox, losses: Losses) -> None:
    def send(entries: list[object]) -> None:
        raise KeyError("a bug")

    box.put(Parcel("tags", [1, 2], send))
    box.put(store.parcel(3))
    assert box.wait(20)
    assert store.taken == [3]
    assert losses.lines() == ["MLflow: 2 tags not recorded (KeyError: 'a bug')"]


@pytest.mark.parametrize("fault", ["down", "hanging"])
def test_the_end_waits_no_longer_than_it_says(
    fault: str, store: Store, box: Outbox, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "END_SECONDS", 0.3)
    setattr(store, fault, True)
    box.put(store.parcel(1, 2))
    box.put(store.parcel(3, kind="run status", may_go=False))
    box.wait(0.0)
    close([box], losses)  # returns at all: a hanging call does not
    assert losses.counts == {"points": 2, "run status": 1}
    assert losses.lines()[0] == "MLflow: 2 points not recorded (the store did not answer until the end)"


def test_an_end_for_which_the_store_comes_back_loses_nothing(store: Store, box: Outbox, losses: Losses) -> None:
    store.down = True
    box.put(store.parcel(1))
    box.wait(0.05)
    threading.Timer(0.2, lambda: setattr(store, "down", False)).start()
    close([box], losses)
    assert store.taken == [1]
    assert losses.counts == {}
