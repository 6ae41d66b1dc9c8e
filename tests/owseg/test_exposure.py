"""Which steps show a sample: what is computed from the indexes is what the batches hold."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import tiny
from helpers.tar_files import sample, write
from owseg.data import CaptionBatches
from owseg.exposure import Exposure, Shown
from owseg.method_config import TrainableConfig
from owseg.partners import Partners
from owseg.training import LoopConfig, TrainJob, batches_of, build, reader_of, settings_of, train

SAMPLES = 21
"""Two batches of eight in an epoch, and five samples that it does not show."""


def files(spoilt: str = "") -> list[tuple[str, bytes]]:
    """Samples of three entities, some of several captions that name others; one whose image cannot be read."""
    found = []
    for number in range(SAMPLES):
        names = [f"thing {number % 3}"]
        about: dict[str, object] = {"entities": names}
        if number % 4 == 0:
            about |= {"captions": ["one", "two"], "caption_entities": [names, ["thing 0", "thing 2"]]}
        key = f"{number:04}"
        found += sample(key, image=b"no image" if key == spoilt else None, **about)
    return found


def job(folder: Path, method: TrainableConfig, spoilt: str = "") -> TrainJob:
    tar = write(folder / "tars" / "00000.tar", files(spoilt))
    looped = LoopConfig(log_every=1, checkpoint_every=100, max_bad_share=0.2)
    return TrainJob(method=method, encoder=tiny.encoder_config(folder), shards=(tar,), out=folder / "out", train=looped)


def seen(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Shown]]:
    """What the batches themselves hold, by key."""
    found: dict[str, list[Shown]] = defaultdict(list)
    method = build(job)
    reader = reader_of(job, method)
    drawn: list[int] = []
    draw = Partners.draw

    def recorded(*given: object) -> tuple[int, str]:
        index, entity = draw(*given)  # type: ignore[arg-type]
        drawn.append(index)
        return index, entity

    monkeypatch.setattr(Partners, "draw", recorded)
    for scheduled in job.scheduled_phases:
        batches: CaptionBatches = batches_of(job, method, reader, scheduled, 0, 1)
        for step in range(scheduled.start, scheduled.stop):
            drawn.clear()
            keys = batches[step].keys
            for place, key in enumerate(keys):
                found[key].append(Shown(key, step, place, ""))
                if drawn and (partner := reader.samples.key(drawn[place])) != key:
                    found[partner].append(Shown(partner, step, place, key))
    return {key: sorted(some, key=lambda one: (one.step, one.place, one.partner_of)) for key, some in found.items()}


def test_steps_of_a_sample_are_those_of_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two schedules, with partners in the second, by entities of the caption that each epoch draws."""
    training = job(tmp_path, tiny.ovsegmentor_config(3, 5))
    exposure, truth = Exposure(training), seen(training, monkeypatch)
    keys = [f"{number:04}" for number in range(SAMPLES)]
    assert {key: exposure.of([key], 8) for key in keys} == {key: truth.get(key, []) for key in keys}
    assert any(one.partner_of for some in truth.values() for one in some)
    assert exposure.of(keys, 8) == sorted((one for some in truth.values() for one in some), key=lambda one: one[1:] + one[:1])
    assert exposure.of(keys[:1], 1) == [one for one in truth.get(keys[0], []) if one.step < 1]
    assert exposure.of(["none"], 8) == []


def test_an_unreadable_samples_place_goes_to_another_and_the_ledger_tells_other_shards(tmp_path: Path) -> None:
    training = job(tmp_path, tiny.clip_config(4), spoilt="0007")
    train(training)
    ledger = json.loads(training.ledger.read_text())
    exposure = Exposure(training)
    assert exposure.agrees_with(ledger)
    shown = exposure.of([f"{number:04}" for number in range(SAMPLES)], 4)
    assert len(shown) == 4 * 8
    assert "0007" not in {one.key for one in shown}
    training.bad_samples.unlink()
    assert not Exposure(training).agrees_with(ledger)
    assert not Exposure(replace(training, seed=1)).agrees_with(ledger)


def test_a_forgotten_sample_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """Not in the batches, not among bad samples; a training that has begun with it is not resumed without it."""
    training = replace(job(tmp_path, tiny.ovsegmentor_config(2, 2)), forgotten=("0004", "0013"))
    assert settings_of(training, 1)["shards"] != settings_of(replace(training, forgotten=()), 1)["shards"]
    method = build(training)
    reader = reader_of(training, method)
    assert (len(reader), reader.bad) == (SAMPLES - 2, [])
    shown = [one.key for one in Exposure(training).of([f"{number:04}" for number in range(SAMPLES)], 4)]
    assert not {"0004", "0013"} & {*shown}
    whole = write(tmp_path / "less" / "00000.tar", [file for file in files() if file[0][:4] not in ("0004", "0013")])
    without = reader_of(replace(training, shards=(whole,), forgotten=()), method)
    keys = [[one.samples.key(number) for number in range(len(one))] for one in (reader, without)]
    assert keys[0] == keys[1]
    for scheduled in training.scheduled_phases:
        one, other = (batches_of(training, method, reader, scheduled, 0, 1) for reader in (reader, without))
        assert one.keys(scheduled.start) == other.keys(scheduled.start)
        assert one[scheduled.start].image.equal(other[scheduled.start].image)
