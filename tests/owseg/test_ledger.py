"""The sample ledger: neither ranks nor restarts have a say in it, and each step's keys can be told."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny
from helpers.tar_files import samples, write
from owseg import InputError, ledger
from owseg.exposure import keys_of_step
from owseg.ledger import LEDGER, Ledger
from owseg.snapshots import POSITION
from owseg.step_log import read_log
from owseg.training import CHECKPOINT, LoopConfig, TrainJob, train

KEYS = [f"key {number}" for number in range(8)]


def by_ranks(monkeypatch: pytest.MonkeyPatch, ranks: int) -> dict[str, Any]:
    """The ledger of two steps that so many ranks share out."""
    share = len(KEYS) // ranks
    ledgers = [Ledger(None) for _ in range(ranks)]
    for step in range(2):
        for rank, one in enumerate(ledgers):
            one.add(0, 3, step, rank * share, KEYS[rank * share : (rank + 1) * share])
    new = [dict(one._new) for one in ledgers]
    monkeypatch.setattr(ledger, "_gather", lambda own: new)
    told = [one.over_ranks() for one in ledgers]
    assert all(one == told[0] for one in told)
    return told[0]


def test_ranks_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    one = by_ranks(monkeypatch, 1)
    assert one == by_ranks(monkeypatch, 2) == by_ranks(monkeypatch, 4)
    found = (hashlib.sha256(f"0 3 {step} {place} {KEYS[place]}".encode()) for step in range(2) for place in range(8))
    total = sum(int.from_bytes(digest.digest()) for digest in found) % 2**256
    assert one == {"since": 0, "epochs": [{"schedule": 0, "epoch": 3, "samples": 16, "digest": f"{total:064x}"}]}


def test_an_older_checkpoint_has_none(tmp_path: Path) -> None:
    (tmp_path / POSITION).write_text('{"step": 7}')
    assert Ledger(tmp_path).over_ranks() == {"since": 7, "epochs": []}


def test_training_keeps_it_over_kills_and_tells_each_steps_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sample's place goes to another; the killed training's ledger ends up as that of the one that ran through."""
    tar = write(tmp_path / "tars" / "00000.tar", samples(20, {5: (".jpg", b"no image")}))

    def job(out: str) -> TrainJob:
        looped = LoopConfig(log_every=4, checkpoint_every=3)
        encoder = tiny.encoder_config(tmp_path)
        return TrainJob(method=tiny.clip_config(6), encoder=encoder, shards=(tar,), out=tmp_path / out, train=looped)

    train(job("whole"))
    told = json.loads(job("whole").ledger.read_text())
    expected = Ledger(None)
    for step in range(6):
        keys = keys_of_step(job("whole"), step)
        assert "0005" not in keys
        expected.add(0, step // 2, step, 0, keys)
    assert told == {"step": 6, **expected.over_ranks()}
    assert [row["samples"] for row in told["epochs"]] == [16, 16, 16]
    assert [line[LEDGER] for line in read_log(job("whole").log)] == [row["digest"] for row in told["epochs"][1:]]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("owseg.training.StepLog.__call__", stop)  # behind the checkpoint of step 3, of which no line tells
        with pytest.raises(KeyboardInterrupt):
            train(job("cut"))
    assert json.loads((tmp_path / "cut" / CHECKPOINT / POSITION).read_text())["step"] == 3
    train(job("cut"))
    assert json.loads(job("cut").ledger.read_text()) == told
    with pytest.raises(InputError, match="has the steps 0 to 5"):
        keys_of_step(job("whole"), 6)
