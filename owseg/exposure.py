"""Which samples a training's steps show, and which steps show a sample: both follow from the samples, the seed and the step."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from owseg import InputError
from owseg.data import CaptionBatches, caption_number, epoch_order
from owseg.encoders import build_encoder
from owseg.ledger import Ledger
from owseg.segmenter import build_trained
from owseg.shards import ShardReader
from owseg.training import TrainJob, batches_of, reader_of
from storage.understood import shaped, understood


class Shown(NamedTuple):
    """A place in a step's global batch in which a sample was shown. Steps count from 0 over all phases."""

    key: str
    step: int
    place: int
    partner_of: str
    """The key of the sample whose partner it was; "" where it was shown for itself."""


def keys_of_step(job: TrainJob, step: int) -> list[str]:
    """The keys of the samples of a step (from 0) in their places, as any run of this training shows them.

    Samples that cannot be read are found as training finds them: images are opened. Raises InputError for steps beyond its end.
    """
    if not 0 <= step < job.steps:
        raise InputError(f"step {step}: training {job.method.name} has the steps 0 to {job.steps - 1}")
    method = build_trained(job.method, lambda: build_encoder(job.encoder))  # its weights have no say
    scheduled = next(one for one in job.scheduled_phases if step < one.stop)
    return batches_of(job, method, reader_of(job, method), scheduled, rank=0, workers=1).keys(step)


@dataclass(frozen=True)
class _Epoch:
    """The steps of an epoch that are looked at, and the samples that they show."""

    batches: CaptionBatches
    number: int
    steps: range
    samples: np.ndarray
    """[steps * batch] numbers of samples, those in the place of unreadable ones among them."""
    left_out: dict[int, set[int]]
    """By step, the unreadable samples that were met."""

    def at(self, slot: int) -> tuple[int, int]:
        """Step and place of a sample."""
        step, place = divmod(slot, self.batches.batch_size)
        return self.steps.start + step, place


class Exposure:
    """What a training shows, from the indexes of its tars alone: no image is opened.

    Samples that training could not read are those that it has named in `bad_samples.jsonl`. Where one of them was drawn as a
    partner, the partner in its place may be another than training's.
    """

    def __init__(self, job: TrainJob) -> None:
        """Raises InputError as `ShardReader` does."""
        self._job = job
        # The weights have no say in it, so none are loaded.
        self._method = build_trained(job.method, lambda: build_encoder(job.encoder))
        self.reader: ShardReader = reader_of(job, self._method)
        self._unreadable = frozenset(self._named_bad(job.bad_samples))

    def _named_bad(self, file: Path) -> Iterator[int]:
        """The samples that training has left out, but for those that the reader leaves out, too."""
        named = set[tuple[str, str]]()
        with understood(file, "which samples training has left out is not known"):
            for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
                told = shaped(json.loads(line), {"shard": str, "key": str})
                named.add((Path(told["shard"]).name, told["key"]))
        for number in self._numbers({key for _, key in named}):
            tar = self.reader.shards[self.reader.samples.place(number)[0]]
            if (tar.name, self.reader.samples.key(number)) in named:
                yield number

    def _numbers(self, keys: Collection[str]) -> list[int]:
        """The samples of these keys."""
        key = self.reader.samples.key
        return [number for number in range(len(self.reader)) if key(number) in keys] if keys else []

    def agrees_with(self, ledger: Mapping[str, Any]) -> bool:
        """Whether the first epoch that a training's ledger tells of has the digest that these samples give.

        `ledger` is of the shape `owseg.ledger.SHAPE`.
        """
        rows, since, step = ledger["epochs"], ledger["since"], ledger["step"]
        if not rows:
            return False
        expected = Ledger(None)
        for epoch in self._epochs(range(since, step)):
            schedule = epoch.batches.schedule
            if (schedule, epoch.number) != (rows[0]["schedule"], rows[0]["epoch"]):
                if expected.over_ranks()["epochs"]:
                    break
                continue
            size = epoch.batches.batch_size
            for row, one in enumerate(epoch.steps):
                keys = [self.reader.samples.key(number) for number in epoch.samples[row * size : (row + 1) * size].tolist()]
                expected.add(schedule, epoch.number, one, 0, keys)
        return bool(expected.over_ranks()["epochs"] == rows[:1])

    def of(self, keys: Collection[str], steps: int) -> list[Shown]:
        """Where the first so many steps show samples of these keys, for themselves or as partners; by step and place."""
        wanted = np.array(self._numbers(frozenset(keys)), np.int64)
        found: list[Shown] = []
        for epoch in self._epochs(range(steps)) if len(wanted) else ():
            for slot in np.flatnonzero(np.isin(epoch.samples, wanted)).tolist():
                found.append(Shown(self.reader.samples.key(int(epoch.samples[slot])), *epoch.at(slot), ""))
            if epoch.batches.partners is not None:
                found += self._as_partners(epoch, wanted)
        return sorted(found, key=lambda one: (one.step, one.place, one.partner_of, one.key))

    def _epochs(self, steps: range) -> Iterator[_Epoch]:
        """The epochs of each phase, cut to `steps`."""
        for scheduled in self._job.scheduled_phases:
            batches = batches_of(self._job, self._method, self.reader, scheduled, rank=0, workers=1)
            each = len(self.reader) // batches.batch_size
            inside = range(max(scheduled.start, steps.start), min(scheduled.stop, steps.stop))
            at = inside.start
            while at < inside.stop:
                number = batches.epoch(at)
                begin = batches.start + number * each
                stop = min(begin + each, inside.stop)
                yield self._epoch(batches, number, range(at, stop), at - begin)
                at = stop

    def _epoch(self, batches: CaptionBatches, number: int, steps: range, first: int) -> _Epoch:
        """The samples of the epoch's steps from its `first` on."""
        order, size = epoch_order(len(self.reader), batches.seed, number, batches.schedule), batches.batch_size
        samples = np.array(order[first * size : (first + len(steps)) * size])
        left_out: dict[int, set[int]] = {}
        for slot in np.flatnonzero(np.isin(samples, [*self._unreadable])).tolist():
            met = left_out.setdefault(steps.start + slot // size, set())
            place = first * size + slot
            following = (place, *range(place + size, place + size + len(order)))
            for one in following:  # as `CaptionBatches` goes on
                found = int(order[one % len(order)])
                if found not in self._unreadable:
                    samples[slot] = found
                    break
                met.add(found)
        return _Epoch(batches, number, steps, samples, left_out)

    def _as_partners(self, epoch: _Epoch, wanted: np.ndarray) -> Iterator[Shown]:
        """Those of an epoch's samples that were given one of the wanted as their partner."""
        partners = epoch.batches.partners
        assert partners is not None
        entities = {entity for number in wanted.tolist() for entity in partners.lists.of(number)}
        sharing = [partners.samples[partners.starts[one] : partners.starts[one + 1]] for one in sorted(entities)]
        near = np.unique(np.concatenate([*sharing, np.zeros(0, np.int32)]))
        looked_for = {*wanted.tolist()}
        for slot in np.flatnonzero(np.isin(epoch.samples, near)).tolist():
            number, (step, place) = int(epoch.samples[slot]), epoch.at(slot)
            drawn = self._partner(epoch, number, step, place)
            if drawn in looked_for and drawn != number:
                key = self.reader.samples.key
                yield Shown(key(drawn), step, place, key(number))

    def _partner(self, epoch: _Epoch, number: int, step: int, place: int) -> int:
        """The partner that `CaptionBatches` draws for a sample."""
        batches = epoch.batches
        assert batches.partners is not None
        rng = np.random.default_rng([batches.seed, step, place, 1])
        own, met = self._entities(epoch, number), set(epoch.left_out.get(step, ()))
        while True:
            drawn, _ = batches.partners.draw(number, rng, own)
            if drawn == number or drawn not in self._unreadable:
                return drawn
            if drawn in met:
                return number
            met.add(drawn)

    def _entities(self, epoch: _Epoch, number: int) -> Sequence[int]:
        """Numbers of the entities of the caption that the epoch draws for a sample."""
        lists, about = self.reader.entities, self.reader.samples.place(number)[3]
        if not about[1]:  # it has one caption
            return lists.of(number)
        _, captions, entities = self.reader.read(number)
        key = self.reader.samples.key(number)
        drawn = caption_number(len(captions), epoch.batches.seed, epoch.number, key, epoch.batches.schedule)
        return [lists.numbers[name] for name in dict.fromkeys(entities[drawn])]
