"""Two tiers: the scan loses nothing that the tagger could find, the tally counts exactly, and the tagger decides the rest."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc

from filtering.captions.entities import EntityFinder
from filtering.captions.lexicon import Lexicon, load_lexicon
from filtering.captions.matching import Matcher, add_tallies, chances, entity_counts, tally
from filtering.captions.reader import SourceConfig, read_links
from filtering.captions.surface_forms import Meaning, Scanner
from filtering.captions.tagger import load_tagger
from filtering.captions.vocabulary import FrequencyList, kept_entities
from filtering.schema import FORMS
from helpers.paths import CAPTIONS, needs

REAL = ("cc3m_validation.tsv", "web_alt_text_10k.parquet")


@Language.component("tags_by_lot")
def tags_by_lot(doc: Doc) -> Doc:
    """A tagger that may say anything: what the scan promises must hold for every tagger."""
    lot = random.Random(doc.text)
    for token in doc:
        token.tag_ = lot.choice(("NN", "NNS", "NNP", "NNPS", "JJ", "VB", "DT"))
    return doc


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_lexicon()


@pytest.fixture(scope="module")
def by_lot(lexicon: Lexicon) -> EntityFinder:
    nlp = spacy.blank("en")
    nlp.add_pipe("tags_by_lot")
    return EntityFinder(nlp, lexicon)


@pytest.fixture(scope="module")
def find(lexicon: Lexicon) -> EntityFinder:
    return EntityFinder(load_tagger(), lexicon)


@pytest.fixture
def scan(lexicon: Lexicon) -> Scanner:
    return Scanner(lexicon, spacy.blank("en").tokenizer)


# ---- the scan


@pytest.mark.parametrize(
    ("caption", "forms"),
    [
        ("two dogs and a Cat", ["dogs", "cat|capital"]),
        ("Two Dogs By The Old House", ["dogs|title", "house|title"]),
        ("a teddy bear under the Traffic Lights", ["teddy bear", "traffic lights"]),
        ("a t-shirt, a t - shirt", ["t shirt", "t shirt"]),
        ("a traffic, light", ["light"]),
        ("a dog's bowl, a dog/cat and 5kg of apples.", ["dog", "bowl", "dog", "cat", "apples"]),
        ("<PERSON> in a red_car", ["car"]),
        ("a hot dog house by the lake", ["hot dog", "dog house|overlap", "house", "lake"]),
        ("a photo of it", []),
        ("", []),
    ],
)
def test_forms(scan: Scanner, caption: str, forms: list[str]) -> None:
    assert scan([caption]).to_pylist() == [forms]


def test_meanings(scan: Scanner) -> None:
    assert scan.means("dogs|capital") == Meaning("dog", frozenset({"dog"}))
    assert scan.means("coffee table") == Meaning("table", frozenset({"table", "coffee"}))
    assert scan.means("glasses") == scan.means("glass") == Meaning("glass", frozenset({"glass"}))
    assert scan.means("stock photo") == Meaning("", frozenset())


ODD = (
    "5", "5kg", "2m", "10a.m.", "3D", "US$", "°C", "km/h", "<PERSON>", "\U0001f415", "\U0001f468\u200d\U0001f467", "\ufb01sh",
    "ＤＯＧ", "İ", "ΣΑΣ", "ß", "ǅ", "café", "naïve", "½", "\u00ad", "\u3000", "www.dog.com", "dog.com", "a@b.cat", "://", "…",
    "...", "—", "–", "--", "-", "''", "’s", "'s", "n't", "#", "&", "lovin 'cos",
)  # fmt: skip
BETWEEN = (" ",) * 5 + (
    "",
    "-",
    " - ",
    "/",
    ".",
    ",",
    ", ",
    "_",
    "'s ",
    "’s ",
    "s ",
    "es ",
    " & ",
    ":",
    "(",
    ") ",
    "+",
    "~",
    "*",
)
BETWEEN += ("|", "\u00a0", "\t", "  ")
CASES = (str, str, str.lower, str.upper, str.capitalize, str.title, str.swapcase, str.casefold)


def nasty(lot: random.Random, names: Sequence[str], special: Sequence[str]) -> str:
    """A caption of lexicon names and parts of them, spaCy's special cases, odd things and any characters, in any case."""
    parts = []
    for _ in range(lot.randint(1, 12)):
        name = lot.choice(names)
        anything = "".join(chr(lot.randint(33, 0x2FFF)) for _ in range(lot.randint(1, 6)))
        kinds = (name, lot.choice(name.split()), lot.choice(special), lot.choice(ODD), anything)
        parts += [lot.choice(CASES)(lot.choices(kinds, (9, 4, 3, 3, 1))[0]), lot.choice(BETWEEN)]
    return lot.choice(CASES)("".join(parts)) if lot.random() < 0.3 else "".join(parts)


def nasty_captions(lexicon: Lexicon, count: int, seed: int) -> list[str]:
    lot, names, special = random.Random(seed), sorted(lexicon.names), sorted(spacy.blank("en").tokenizer.rules)
    return [nasty(lot, names, special) for _ in range(count)]


def lost(scan: Scanner, find: EntityFinder, captions: Sequence[str]) -> list[tuple[str, str]]:
    """(caption, entity) for every entity that full tagging finds and the scan does not hold possible."""
    pairs = zip(captions, find(captions), scan(captions).to_pylist(), strict=True)
    possible = (
        (caption, names, {one for form in forms for one in scan.means(form).possible}) for caption, names, forms in pairs
    )
    return [(caption, name) for caption, names, some in possible for name in names if name not in some]


def test_nothing_is_lost_in_nasty_captions(lexicon: Lexicon, scan: Scanner, by_lot: EntityFinder) -> None:
    assert lost(scan, by_lot, nasty_captions(lexicon, 4000, seed=1)) == []


def test_names_of_the_lexicon_are_not_lost(lexicon: Lexicon, scan: Scanner, by_lot: EntityFinder) -> None:
    names = [spelling for spelling, name in sorted(lexicon.names.items()) if name][::3]
    sentences = ("two {}s near the {}", "{}es, a {}'s", "{} - {}", "A Great {} And {}", "the {}/{} house")
    captions = [sentences[at % len(sentences)].format(name, name.title()) for at, name in enumerate(names)]
    assert lost(scan, by_lot, captions) == []


@needs(CAPTIONS)
def test_nothing_is_lost_in_real_captions(scan: Scanner, by_lot: EntityFinder) -> None:
    for file in REAL:
        assert lost(scan, by_lot, captions_of(file)[::3]) == []


def test_a_scan_without_plurals_would_be_caught(
    lexicon: Lexicon, scan: Scanner, by_lot: EntityFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_lemmas", lambda word: [word])
    assert len(lost(scan, by_lot, nasty_captions(lexicon, 1000, seed=1))) > 20


# ---- tallies


def tally_by_lot(scan: Scanner, by_lot: EntityFinder, captions: Sequence[str], every: int = 1) -> pa.Table:
    """A tally of captions of which every n-th was tagged."""
    tagged = [found if at % every == 0 else None for at, found in enumerate(by_lot(captions))]
    return tally(scan(captions), tagged, scan.means)


def test_counts_are_exact_when_all_was_tagged(lexicon: Lexicon, scan: Scanner, by_lot: EntityFinder) -> None:
    captions = nasty_captions(lexicon, 1500, seed=2) + ["a red car", "a hot dog house", "glasses and a glass"] * 20
    truth = Counter(chain.from_iterable(by_lot(captions)))
    assert entity_counts(tally_by_lot(scan, by_lot, captions)) == truth


def test_a_tally_counts_the_first_form_of_an_entity(scan: Scanner) -> None:
    forms = scan(["a dog, two dogs", "dogs", "a Dog in my coffee table", "dogs"])
    table = tally(forms, [["dog"], [], None, None], scan.means)
    assert table.schema == FORMS
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("coffee table", "table", 1, 0, 0),
        ("coffee table > coffee", "coffee", 1, 0, 0),
        ("dog", "dog", 1, 1, 1),
        ("dogs", "dog", 2, 1, 0),
        ("dog|capital", "dog", 1, 0, 0),
    ]


def test_an_own_name_counts_before_what_a_form_might_be(scan: Scanner) -> None:
    table = tally(scan(["a coffee table and a coffee"]), [["table", "coffee"]], scan.means)
    assert dict(zip(table["form"].to_pylist(), table["accepted"].to_pylist(), strict=True)) == {"coffee": 1, "coffee table": 1}


def test_tallies_add_up_in_any_order(lexicon: Lexicon, scan: Scanner, by_lot: EntityFinder) -> None:
    captions = nasty_captions(lexicon, 400, seed=3)
    whole = tally_by_lot(scan, by_lot, captions)
    parts = [tally_by_lot(scan, by_lot, captions[at::7]) for at in range(7)]
    for order in (parts, parts[::-1]):
        total = add_tallies(order)
        assert total.equals(whole)
        assert chances(total) == chances(whole)
    assert add_tallies([]).schema == FORMS
    assert entity_counts(add_tallies([])) == {}


def forms_table(rows: Iterable[tuple[str, int, int]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"form": form, "entity": form, "captions": 100, "sampled": n, "accepted": k} for form, n, k in rows], schema=FORMS
    )


def test_chances_lean_on_their_kind_while_samples_are_few() -> None:
    sure = [(f"thing{at}", 40, 39 + at % 2) for at in range(50)]
    names = [(f"name{at}|capital", 40, 20) for at in range(50)]
    chance = chances(forms_table([*sure, *names, ("rare", 1, 1), ("rare|capital", 1, 1), ("bear", 500, 250)]))
    assert chance["rare"] > 0.9 > chance["rare|capital"]
    assert chance["bear"] == pytest.approx(0.5, abs=0.02)
    assert chance["thing0"] == pytest.approx(39 / 40, abs=0.02)
    assert chance["unseen|capital"] == pytest.approx(0.5, abs=0.02)
    assert chance["unseen"] > 0.9


def test_chances_without_samples_decide_nothing() -> None:
    chance = chances(forms_table([("dog", 0, 0)]))
    assert chance["dog"] == chance["cat"] == 0.5


def test_counts_extrapolate_what_was_not_tagged() -> None:
    table = forms_table([(f"thing{at}", 50, 40) for at in range(20)])
    assert all(76 <= count <= 84 for count in entity_counts(table).values())


# ---- decisions


def never_ask(captions: Sequence[str]) -> list[list[str]]:
    """A finder that must not be needed."""
    assert not captions, "the tagger was asked"
    return []


CERTAIN = [("dog", 99, 99), ("dogs", 99, 99), ("cats", 99, 99), ("train", 99, 1)] + [(f"thing{at}", 99, 99) for at in range(20)]


def test_certain_forms_need_no_tagger(scan: Scanner) -> None:
    matcher = Matcher(never_ask, scan, frozenset({"dog", "cat", "train"}), forms_table(CERTAIN), 0.9)
    captions = ["two dogs, a dog", "train a model", "cats and dogs in a wolf", "a wolf"]
    assert matcher.match(captions, scan(captions), [None] * 4) == [["dog"], [], ["cat", "dog"], []]
    assert matcher.counts == {"rejected": 2, "decided": 2, "tagged": 0}
    assert matcher.keep(captions).tolist() == [True, False, True, False]
    assert matcher.likely(scan(captions)) == [["dog"], [], ["cat", "dog", "wolf"], ["wolf"]]


def test_open_forms_are_tagged(scan: Scanner, find: EntityFinder) -> None:
    table = forms_table([*CERTAIN, ("book", 50, 25)])
    matcher = Matcher(find, scan, frozenset({"dog", "book"}), table, 0.9)
    captions = ["a book on the table", "she will book a flight", "a dog and a book", "we book two dogs"]
    # a certain dog keeps the last two, whatever becomes of the book
    assert matcher.match(captions, scan(captions), [None] * 4) == [["book"], [], ["dog", "book"], ["book", "dog"]]
    assert matcher.counts == {"rejected": 0, "decided": 2, "tagged": 2}
    assert matcher.keep(captions).tolist() == [True, False, True, True]
    assert matcher.counts == {"rejected": 0, "decided": 4, "tagged": 4}


def test_what_was_tagged_before_is_taken_as_it_is(scan: Scanner) -> None:
    matcher = Matcher(never_ask, scan, frozenset({"dog", "cat"}), forms_table(CERTAIN), 0.9)
    captions = ["a dog", "dogs", "some book"]
    assert matcher.match(captions, scan(captions), [["cat", "wolf"], None, []]) == [["cat"], ["dog"], []]
    assert matcher.counts == {"rejected": 0, "decided": 1, "tagged": 2}


class Exact:
    """A scanner of words that are entities as they stand."""

    def __call__(self, captions: Iterable[str]) -> pa.ListArray:
        return pa.array([[word for word in caption.split() if word == "Bus"] for caption in captions], pa.list_(pa.string()))

    def means(self, form: str) -> Meaning:
        return Meaning(form, frozenset({form}), certain=True)


def test_forms_that_are_certain_by_themselves() -> None:
    scan, captions = Exact(), ["a Bus by a Bus", "a bus"]
    table = tally(scan(captions), [None, None], scan.means)
    assert table.to_pylist() == [{"form": "Bus", "entity": "Bus", "captions": 1, "sampled": 1, "accepted": 1}]
    assert entity_counts(table) == {"Bus": 1}
    matcher = Matcher(never_ask, scan, frozenset({"Bus"}), add_tallies([]), 0.9)
    assert matcher.match(captions, scan(captions), [None, None]) == [["Bus"], []]
    assert matcher.keep(captions).tolist() == [True, False]
    assert matcher.likely(scan(captions)) == [["Bus"], []]


def test_no_captions(scan: Scanner) -> None:
    matcher = Matcher(never_ask, scan, frozenset({"dog"}), add_tallies([]), 0.9)
    assert matcher.match([], scan([]), []) == []
    assert matcher.keep([]).tolist() == []
    assert matcher.likely(scan([])) == []
    assert tally(scan([]), [], scan.means).num_rows == 0


@needs(CAPTIONS)
@pytest.mark.parametrize("file", REAL)
def test_two_tiers_keep_what_full_tagging_keeps(scan: Scanner, find: EntityFinder, file: str) -> None:
    captions = captions_of(file)[:3000]
    truth = find(captions)
    kept = kept_entities(
        FrequencyList().choose(Counter(chain.from_iterable(truth)), top_k=100, min_count=2, excluded=frozenset())
    )
    tallied = tally(scan(captions[::2]), truth[::2], scan.means)
    matcher = Matcher(find, scan, kept, tallied, confidence=0.9)
    others, expected = captions[1::2], [[name for name in names if name in kept] for names in truth[1::2]]
    keep = np.array([bool(names) for names in expected])
    decided = matcher.keep(others)
    assert (decided == keep).mean() >= 0.99
    assert matcher.counts["tagged"] < 0.15 * len(others)
    matched = matcher.match(others, scan(others), [None] * len(others))
    assert [bool(names) for names in matched] == decided.tolist()
    assert np.mean([ours == theirs for ours, theirs in zip(matched, expected, strict=True)]) >= 0.97


def captions_of(file: str) -> list[str]:
    tables = read_links(SourceConfig(path=str(CAPTIONS / file)))
    return list(chain.from_iterable(table["caption"].to_pylist() for table in tables))
