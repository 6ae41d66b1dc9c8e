"""From forms to entities: what the tagger said of a form in a sample decides it elsewhere; what it leaves open is tagged.

A *reading* is a form together with one of its possible entities. Readings other than the form's own name are written
"form > entity": "coffee table > coffee" is what the tagger makes of a coffee table when it takes "table" for no noun.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import fsum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from filtering.captions.entities import Remembered
from filtering.captions.surface_forms import OVERLAP, CaptionScanner, Meaning, parted
from filtering.schema import FORMS

OTHERWISE = " > "
UNKNOWN = (0.5, 1.0)
"""Mean and weight of the prior where the tally holds no sample."""

LIKELY = 0.5
"""Chance from which an entity is taken to be there, in a caption that nobody has to read."""

Ints = NDArray[np.int64]
Find = Callable[[Sequence[str]], list[list[str]]]
"""What reads captions in full, such as `EntityFinder`: for every one its entities."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One thing that a form may be. `own`: it is what the form says, and not only what a tagger might make of it."""

    form: str
    entity: str
    own: bool
    certain: bool


def readings(form: str, meaning: Meaning) -> list[Reading]:
    """All readings of a form, its own name first."""
    own = [meaning.name] if meaning.name else []
    others = sorted(meaning.possible.difference(own))
    return [
        *(Reading(form, name, not form.endswith(OVERLAP), meaning.certain) for name in own),
        *(Reading(f"{form}{OTHERWISE}{name}", name, False, False) for name in others),
    ]


@dataclass(frozen=True)
class _Mentions:
    """The readings of many captions: for mention i, in order, its caption `row[i]` and its reading `of[number[i]]`."""

    row: Ints
    number: Ints
    of: list[Reading]


def _mentions(forms: pa.ListArray, readings_of: Callable[[str], Sequence[Reading]]) -> _Mentions:
    """Look up every form once and spread its readings over the captions."""
    encoded = forms.flatten().dictionary_encode()
    each = [readings_of(form) for form in encoded.dictionary.to_pylist()]
    sizes = np.array([len(some) for some in each], np.int64)
    code = encoded.indices.to_numpy().astype(np.int64)
    size = sizes[code]
    row = np.repeat(np.arange(len(forms)), forms.value_lengths().to_numpy())
    within = np.arange(size.sum()) - np.repeat(size.cumsum() - size, size)
    number = np.repeat((sizes.cumsum() - sizes)[code], size) + within
    return _Mentions(np.repeat(row, size), number, list(chain.from_iterable(each)))


# ---- tallies


def tally(forms: pa.ListArray, tagged: Sequence[list[str] | None], means: Callable[[str], Meaning]) -> pa.Table:
    """Count captions by reading (schema `FORMS`): in how many it is the first of its entity, how many of those were tagged,
    and in how many of these the entity was found. An own name comes before what a form might be otherwise.

    Args:
        forms: the forms of every caption.
        tagged: the entities that the tagger found in it, None for a caption that it has not read.
        means: what a form means.
    """
    mentions = _mentions(forms, lambda form: readings(form, means(form)))
    names = {name: code for code, name in enumerate(dict.fromkeys(reading.entity for reading in mentions.of))}
    entity = np.array([names[reading.entity] for reading in mentions.of], np.int64)[mentions.number]
    other = np.array([not reading.own for reading in mentions.of], bool)[mentions.number]
    certain = np.array([reading.certain for reading in mentions.of], bool)
    place = mentions.row * len(names) + entity
    order = np.lexsort((other, place))  # stable: of two alike the one mentioned first
    first = order[np.diff(place[order], prepend=-1) != 0]
    number, place = mentions.number[first], place[first]
    read = np.array([found is not None for found in tagged], bool)[mentions.row[first]] | certain[number]
    found = [row * len(names) + names[name] for row, some in enumerate(tagged) for name in some or () if name in names]
    accepted = np.isin(place, np.array(found, np.int64)) | certain[number]
    counts = [np.bincount(some, minlength=len(mentions.of)) for some in (number, number[read], number[accepted])]
    table = pa.Table.from_arrays(
        [
            pa.array([reading.form for reading in mentions.of], pa.string()),
            pa.array([reading.entity for reading in mentions.of], pa.string()),
            *(pa.array(count, pa.int64()) for count in counts),
        ],
        schema=FORMS,
    )
    return add_tallies([table.filter(pc.greater(table["captions"], 0))])


def add_tallies(tallies: Iterable[pa.Table]) -> pa.Table:
    """The sum of tallies, sorted by form."""
    keys, counts = FORMS.names[:2], FORMS.names[2:]
    total = pa.concat_tables([FORMS.empty_table(), *tallies]).group_by(keys).aggregate([(name, "sum") for name in counts])
    return total.rename_columns([*keys, *counts]).select(FORMS.names).cast(FORMS).sort_by([(key, "ascending") for key in keys])


# ---- what a tally tells


class Chances(dict[str, float]):
    """Reading → chance that the tagger finds its entity. A reading that is not in the tally has the mean of its kind."""

    def __init__(self, chances: Mapping[str, float], means: Mapping[str, float]) -> None:
        super().__init__(chances)
        self._means = means

    def __missing__(self, form: str) -> float:
        return self._means.get(_kind(form), UNKNOWN[0])


def chances(tallied: pa.Table) -> Chances:
    """The share of accepted captions of every reading, drawn towards the mean of the readings of its kind.

    That is the posterior mean under a Beta prior per kind (lower case, capital, Title Case, compound, overlap, read otherwise).
    Mean and weight of the prior are the moments of the kind's own shares, so a reading that was sampled but twice is as
    certain as its kind is uniform.
    """
    form, sampled, accepted = (tallied[name].to_pylist() for name in ("form", "sampled", "accepted"))
    kinds = [_kind(name) for name in form]
    priors = {
        kind: _prior([(n, k) for n, k, one in zip(sampled, accepted, kinds, strict=True) if n and one == kind])
        for kind in sorted(set(kinds))
    }
    smoothed = {}
    for name, kind, n, k in zip(form, kinds, sampled, accepted, strict=True):
        mean, weight = priors[kind]
        smoothed[name] = (k + mean * weight) / (n + weight)
    return Chances(smoothed, {kind: mean for kind, (mean, _) in priors.items()})


def entity_counts(tallied: pa.Table) -> dict[str, int]:
    """Captions per entity: those in which the tagger found it, and of those that it did not read the expected number."""
    chance = chances(tallied)
    expected: dict[str, list[float]] = {}
    for row in tallied.to_pylist():
        unread = row["captions"] - row["sampled"]
        expected.setdefault(row["entity"], []).append(row["accepted"] + (unread and unread * chance[row["form"]]))
    rounded = {entity: round(fsum(some)) for entity, some in sorted(expected.items())}
    return {entity: count for entity, count in rounded.items() if count}


def _kind(form: str) -> str:
    if OTHERWISE in form:
        return OTHERWISE
    words, case = parted(form)
    return case or ("compound" if " " in words else "lower")


def _prior(samples: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Mean and weight (in samples) of the Beta distribution of the shares behind `samples` (n, accepted of n).

    Moments after Kleinman (1973): what the shares scatter more than n draws at one chance would is the scatter of the chances.
    """
    if not samples:
        return UNKNOWN
    shares = [accepted / n for n, accepted in samples]
    mean = (fsum(shares) + 0.5) / (len(shares) + 1)
    noise = (1 - 1 / len(shares)) * fsum(1 / n for n, _ in samples)
    room = len(shares) - 1 - noise
    if room <= 0:  # each was drawn once: nothing is known of the scatter
        return mean, UNKNOWN[1]
    scatter = fsum((share - mean) ** 2 for share in shares) / (mean * (1 - mean))
    correlation = min(max((scatter - noise) / room, 0.01), 0.99)
    return mean, 1 / correlation - 1


# ---- decisions


class Matcher:
    """Finds the kept entities of captions, and asks the tagger only where the chances of their forms leave it open."""

    def __init__(self, find: Find, scan: CaptionScanner, kept: frozenset[str], forms: pa.Table, confidence: float) -> None:
        """`forms` is a tally.

        A caption is kept unread if it mentions some kept entity with a chance of `confidence` or more, and dropped unread if
        with one of at most 1 - `confidence`.
        """
        self._find = find
        self._scan = scan
        self._kept = kept
        self._chances = chances(forms)
        self._confidence = confidence
        self._of_kept = Remembered(self._kept_readings)
        self.counts = {"rejected": 0, "decided": 0, "tagged": 0}

    def match(self, captions: Sequence[str], forms: pa.ListArray, tagged: Sequence[list[str] | None]) -> list[list[str]]:
        """The kept entities of every caption, in order of first mention; none means drop.

        The tagger reads the captions that its answer may keep or drop, and then says all that is in them. In one that is kept
        unread every entity counts that is likely there: to ask about each of them would triple what has to be tagged.

        Args:
            captions: the captions, for the tagger.
            forms: their forms, as the scanner gives them.
            tagged: what the tagger found in those that it has read before, taken as it is; None for the others.
        """
        known = np.array([found is not None for found in tagged], bool)
        mentions = _mentions(forms, self._of_kept.__getitem__)
        keep, ask = self._judge(mentions, known)
        entities = _entities(mentions, keep[mentions.row] & (self._chance(mentions) >= LIKELY), len(captions))
        answers = dict(zip(ask, self._find([captions[row] for row in ask]), strict=True))
        answers.update((row, found) for row, found in enumerate(tagged) if found is not None)
        for row, found in answers.items():
            entities[row] = [name for name in found if name in self._kept]
        self._count(keep, list(answers))
        return entities

    def keep(self, captions: Sequence[str]) -> NDArray[np.bool_]:
        """Which captions mention a kept entity: those for which `match` gives any."""
        mentions = _mentions(self._scan(captions), self._of_kept.__getitem__)
        keep, ask = self._judge(mentions, np.zeros(len(captions), bool))
        self._count(keep, ask)
        keep[ask] = [not self._kept.isdisjoint(found) for found in self._find([captions[row] for row in ask])]
        return keep

    def likely(self, forms: pa.ListArray) -> list[list[str]]:
        """Every entity, kept or not, that is likely in the captions; the tagger is not asked."""
        mentions = _mentions(forms, lambda form: readings(form, self._scan.means(form)))
        return _entities(mentions, self._chance(mentions) >= LIKELY, len(forms))

    def _judge(self, mentions: _Mentions, known: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], list[int]]:
        """Which captions are kept unread, and which others hang on the tagger, those aside that are `known`.

        Mentions are taken as independent: a caption mentions no kept entity if each of them fails.
        """
        chance = self._chance(mentions)
        fails = np.exp(np.bincount(mentions.row, np.log1p(-chance), len(known)))
        likely = np.bincount(mentions.row, chance >= LIKELY, len(known)) > 0
        keep = (1 - fails >= self._confidence) & likely
        return keep, np.flatnonzero(~keep & ~known & (fails < self._confidence)).tolist()

    def _chance(self, mentions: _Mentions) -> NDArray[np.float64]:
        """The chance of every mention; never quite 1."""
        each = np.array([1.0 if reading.certain else self._chances[reading.form] for reading in mentions.of], np.float64)
        return np.minimum(each, 1 - 1e-12).take(mentions.number)

    def _kept_readings(self, form: str) -> list[Reading]:
        return [reading for reading in readings(form, self._scan.means(form)) if reading.entity in self._kept]

    def _count(self, keep: NDArray[np.bool_], asked: Sequence[int]) -> None:
        """`asked`: the rows that the tagger has read, now or before."""
        decided = np.delete(keep, asked)
        self.counts["tagged"] += len(asked)
        self.counts["decided"] += int(decided.sum())
        self.counts["rejected"] += int((~decided).sum())


def _entities(mentions: _Mentions, chosen: NDArray[np.bool_], rows: int) -> list[list[str]]:
    """For every caption the entities of its chosen readings, each once, in order."""
    entities: list[list[str]] = [[] for _ in range(rows)]
    for row, number in zip(mentions.row[chosen].tolist(), mentions.number[chosen].tolist(), strict=True):
        name = mentions.of[number].entity
        if name not in entities[row]:
            entities[row].append(name)
    return entities
