"""Nouns and entities against labels: a treebank's, and 700 captions labelled by hand."""

import importlib
import random
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import pytest

from filtering.captions.entities import EntityFinder
from filtering.captions.lexicon import load_lexicon
from filtering.captions.surface_forms import Scanner
from filtering.captions.tagger import load_tagger
from filtering.captions.text import for_tagging
from filtering.cleaning import clean
from helpers.paths import CAPTIONS, REPO, TREEBANK, needs


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    """`tools/tagging_quality.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "tools"))
        yield importlib.import_module("tagging_quality")


def test_the_labelled_captions_are_whole(quality: ModuleType) -> None:
    labelled = quality.read_labels()
    assert Counter(row.half for row in labelled) == {"dev": 300, "test": 400}
    assert {row.source for row in labelled} == {"cc3m", "web", "coco", "people", "stock"}
    assert len({row.caption for row in labelled}) == len(labelled)
    nlp, lexicon = load_tagger(), load_lexicon()
    scan = Scanner(lexicon, nlp.tokenizer)
    names = set(lexicon.names.values())
    for row, forms in zip(labelled, scan([row.caption for row in labelled]).to_pylist(), strict=True):
        assert row.caption == clean(row.caption)
        assert len(row.marks) == len(nlp.make_doc(for_tagging(row.caption)[0])), row.caption
        assert set(row.marks) <= set("np.?"), row.caption
        assert len(set(row.entities)) == len(row.entities), row.caption
        said = {name for form in forms for name in scan.means(form).possible}
        for name in row.entities:
            assert name in names
            assert name in said or name in row.caption.lower(), f"{row.caption}: {name}"


def test_scores(quality: ModuleType) -> None:
    """Precision, recall and F1 by hand."""
    scored = quality.score([["dog", "cat"], ["bus", "bus"], []], [["dog"], ["bus", "car"], ["tree"]])
    assert (scored.right, scored.found, scored.there) == (2, 3, 4)
    assert scored.precision == pytest.approx(2 / 3)
    assert scored.recall == pytest.approx(2 / 4)
    assert scored.f1 == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("source", "nouns", "precision", "recall"),
    [("cc3m", 0.95, 0.86, 0.96), ("web", 0.90, 0.65, 0.87), ("coco", 0.97, 0.95, 0.96), ("people", 0.95, 0.96, 0.97),
     ("stock", 0.91, 0.92, 0.93), ("all", 0.94, 0.92, 0.96)],
)  # fmt: skip
def test_floors_on_the_half_that_nothing_was_tuned_on(
    quality: ModuleType, source: str, nouns: float, precision: float, recall: float
) -> None:
    rows = quality.by_source([row for row in quality.read_labels() if row.half == "test"])[source]
    nlp = load_tagger()
    assert quality.caption_noun_score(nlp, rows, *quality.KINDS["all nouns"]).f1 >= nouns
    scored = quality.entity_score(EntityFinder(nlp, load_lexicon())([row.caption for row in rows]), rows)
    assert scored.precision >= precision
    assert scored.recall >= recall


@needs(TREEBANK)
def test_floors_on_the_treebank(quality: ModuleType) -> None:
    nlp, sentences = load_tagger(), quality.find(TREEBANK, "test")
    tags, _ = quality.KINDS["common nouns"]
    assert quality.noun_score(nlp, sentences, tags, from_text=True).f1 >= 0.88
    assert quality.noun_score(nlp, [quality.as_caption(sentence) for sentence in sentences], tags).f1 >= 0.88


@pytest.mark.slow
@needs(CAPTIONS)
def test_two_tiers_are_no_worse_than_tagging_everything(quality: ModuleType) -> None:
    """On both sources together, having learned from all real captions, for the list that is kept by default.

    With every entity in the list a few more verbs pass for the nouns that they mostly are ("if you head right").
    """
    nlp, lexicon = load_tagger(), load_lexicon()
    find_all = EntityFinder(nlp, lexicon)
    files = sorted(CAPTIONS.glob("*.tsv")) + sorted(CAPTIONS.glob("*.parquet"))
    corpus = [caption for file in files for caption in quality.captions_of(str(file))]
    tiers = quality.TwoTiers(find_all, Scanner(lexicon, nlp.tokenizer), corpus)
    labelled = quality.read_labels()
    captions = [row.caption for row in labelled]
    full = find_all(captions)
    for kept, loss in ((tiers.names(quality.TOP_K), 0.0), (tiers.names(), 0.005)):
        in_two = quality.entity_score(tiers(captions, kept), labelled, kept)
        assert in_two.f1 >= quality.entity_score(full, labelled, kept).f1 - loss


def test_fragments_are_captions_without_a_clause(quality: ModuleType) -> None:
    """What the tagger is trained on beside sentences: words keep their tags, and the last one is a noun."""
    trainer = importlib.import_module("train_tagger")
    tagged = "The/DT old/JJ dogs/NNS chased/VBD a/DT red/JJ ball/NN near/IN John/NNP 's/POS house/NN ./."
    sentence = [(*token.rsplit("/", 1), True) for token in tagged.split()]
    phrases = [[word for word, _, _ in phrase] for phrase in trainer.noun_phrases(sentence)]
    assert phrases == [["old", "dogs"], ["red", "ball"], ["John", "'s", "house"]]
    tag_of = {word.lower(): tag for word, tag, _ in sentence} | dict(filter(None, trainer.JOINTS))
    drawn = [fragment for seed in range(50) for fragment in trainer.fragments([sentence] * 3, random.Random(seed))]
    assert all(fragment[-1][1] in trainer.NOUNS for fragment in drawn)
    assert all(tag_of[word.lower()] == tag for fragment in drawn for word, tag, _ in fragment)
