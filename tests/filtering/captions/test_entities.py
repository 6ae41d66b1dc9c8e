"""From a caption to its entities: the tagger, lemmas, compounds, the lexicon's names, and the vocabulary."""

from pathlib import Path
from random import Random

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc

from filtering import InputError
from filtering.captions.entities import EntityFinder, NounLemmas, Remembered, cut_with
from filtering.captions.lexicon import is_english, load_lexicon
from filtering.captions.tagger import SHIPPED, load_tagger
from filtering.captions.text import for_tagging, normalised
from filtering.cleaning import clean
from helpers.paths import TREEBANK, load_tool, needs


@pytest.fixture(scope="module")
def finder() -> EntityFinder:
    return EntityFinder(load_tagger(), load_lexicon())


@pytest.mark.parametrize(
    ("caption", "entities"),
    [
        # number, possessive, hyphen, HTML entity
        ("two dogs chase three cats on the grass", ["dog", "cat", "grass"]),
        ("women and children with knives in the leaves, and mice", ["woman", "child", "knife", "leaf", "mouse"]),
        ("a dog's bowl beside the girls' bicycles", ["dog", "bowl", "girl", "bicycle"]),
        ("a boy in a t-shirt beside a t - shirt", ["boy", "t-shirt"]),
        (clean("a dog &amp; a cat on the &quot;sofa&quot;"), ["dog", "cat", "sofa"]),
        ("a bus, two buses and a glass on the bus", ["bus", "glass"]),
        # compounds before single words; transparent ones are their head
        ("a teddy bear under the traffic lights", ["teddy bear", "traffic light"]),
        ("a fire hydrant and a palm tree near a dining table", ["fire hydrant", "palm tree", "table"]),
        ("football players and a coffee table", ["player", "table"]),
        ("a black cat sits next to a hot dog", ["cat", "hot dog"]),
        # case
        ("Red Car Parked Near The Old House By The River", ["car", "house", "river"]),
        ("A BROWN HORSE IN THE SNOW", ["horse", "snow"]),
        ("BIG SALE: wooden chairs and tables", ["chair", "table"]),
        ("we saw the Brooklyn Bridge at sunset", ["bridge", "sunset"]),
        # names and stopped words are no entities
        ("<PERSON> rides a horse", ["horse"]),
        ("<PERSON> and <PERSON>", []),
        ("<PERSON> With A Dog On The Beach", ["dog", "beach"]),
        ("stock photo of a love story for the holiday event", []),
        ("an image in the style of a vintage background", []),
        # synonyms
        ("people and a guy on a motorbike near a couch", ["person", "man", "motorcycle", "sofa"]),
        ("a kitten and a puppy", ["kitten", "puppy"]),
        # verbs and adjectives are no nouns
        ("she will book a flight and watch them fly", []),
        ("a man climbs", ["man"]),
        ("A man waves at the waves", ["man", "wave"]),
        ("A girl slides down a slide", ["girl", "slide"]),
        ("A man rings a bell", ["man", "bell"]),
        ("A dog barks beside three watches", ["dog", "watch"]),
        ("Leather watches for men", ["watch", "man"]),
        ("A skier flies over the snow", ["skier", "snow"]),
        ("A hiker in a wetsuit jumps over a puddle in the woods", ["hiker", "wetsuit", "puddle", "forest"]),
        # a sentence may open with a bare noun; a name stays one
        ("Boy is lying on grass", ["boy", "grass"]),
        ("Penguin walks on ice . Goalie rests .", ["penguin", "ice", "goalie"]),
        ("Baby yawns", ["baby"]),
        ("Mark is lying on grass", ["grass"]),
        ("Rose is smiling", []),
        # colours and materials
        ("a woman in an orange shirt with suede shoes", ["woman", "shirt", "shoe"]),
        ("a light brown dog", ["dog"]),
        ("a glass of orange juice under an orange tree", ["glass", "juice", "tree"]),
        ("a lens and two lenses", ["lens"]),
        ("", []),
    ],
)
def test_entities(finder: EntityFinder, caption: str, entities: list[str]) -> None:
    assert finder([caption]) == [entities]


def test_batches_do_not_change_what_is_found(finder: EntityFinder) -> None:
    captions = ["a dog runs", "", "Two Cats On A Wall", "\U0001f415" * 30, "a " * 300, "<PERSON>" * 50, "a red bus"] * 100
    together = finder(captions)
    assert len(together) == len(captions)
    assert together[:7] == [finder([caption])[0] for caption in captions[:7]]
    assert together[:7] * 100 == together


@Language.component("everything_is_a_name")
def everything_is_a_name(doc: Doc) -> Doc:
    for token in doc:
        token.tag_ = "NNP"
    return doc


@pytest.mark.parametrize(
    ("caption", "entities"),
    [
        ("Samsung Camera Bag And Blue Lamp", ["camera", "bag", "lamp"]),  # Title Case: a proper noun is as good as any
        ("we see the old Camera there", []),  # before another name
        ("we see the old Camera", ["camera"]),  # the last word of a name
        ("we see the old camera there", ["camera"]),  # in lower case it is no name
    ],
)
def test_proper_nouns(caption: str, entities: list[str]) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("everything_is_a_name")
    assert EntityFinder(nlp, load_lexicon())([caption]) == [entities]


def test_captions_are_cut_as_spacy_cuts_them() -> None:
    tokenizer = spacy.blank("en").tokenizer
    cut = cut_with(tokenizer)
    special = sorted(tokenizer.rules)
    lot = Random(0)
    parts = [*special, *(case(word) for word in special for case in (str.upper, str.title))]
    parts += ["".join(lot.choices("abXY.,-'’()!/5_é", k=lot.randint(1, 8))) for _ in range(3000)]
    parts = [part for text in parts for part in text.split()]
    assert [cut(part) for part in parts] == [tuple(token.text for token in tokenizer(part)) for part in parts]


def test_what_is_remembered_is_forgotten_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filtering.captions.entities.REMEMBERED", 3)
    lengths = Remembered(len)
    assert [lengths["a" * size] for size in range(10)] == list(range(10))
    assert len(lengths) <= 3


def test_stop_words_of_the_user() -> None:
    finder = EntityFinder(load_tagger(), load_lexicon(stop=("Dog", "traffic light")))
    assert finder(["a dog and a cat", "dogs under a traffic light"]) == [["cat"], []]


@pytest.mark.parametrize(
    ("word", "lemma"),
    [("dogs", "dog"), ("buses", "bus"), ("women", "woman"), ("leaves", "leaf"), ("dishes", "dish"), ("ladies", "lady"),
     ("geese", "goose"), ("potatoes", "potato"), ("people", "people"), ("qwertys", "qwerty")],
)  # fmt: skip
def test_lemmas(word: str, lemma: str) -> None:
    lemmas = NounLemmas()(word)
    assert lemmas[0] == lemma
    assert lemmas[-1] == word


def test_english_words() -> None:
    assert all(map(is_english, ["dog", "dogs", "ran", "prettier", "the", "with", "children"]))
    assert not any(map(is_english, ["y", "der", "und", "zxcv", "собака"]))


def test_views_of_a_caption() -> None:
    assert clean("  a\tdog\n&amp;amp; cat\0 ") == "a dog & cat"
    assert clean("a ﬁsh, a ｄｏｇ and a do\u2060g, 𝒄at\xads™ ½") == "a fish, a dog and a dog, cats™ ½"
    assert normalised("A Dog, a CAT!") == normalised("a dog a cat")
    assert normalised("...") == "..."
    assert for_tagging("Old House By The Sea") == ("old house by the sea", True)
    assert for_tagging("A dog in Paris") == ("A dog in Paris", False)
    assert "person" not in for_tagging("<PERSON> At The Beach")[0].lower()


def test_unknown_tagger_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match=r"^filter.tagger: .*'no_such_model'") as caught:
        load_tagger("no_such_model")
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_tag_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(InputError, match="has no tagger"):
        load_tagger(str(tmp_path / "blank"))


def test_a_model_of_the_users_own_is_reduced_to_its_tagger(tmp_path: Path) -> None:
    nlp = spacy.load(SHIPPED)
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "own")
    assert load_tagger(str(tmp_path / "own")).pipe_names == ["tagger"]


def test_the_shipped_tagger_is_small_and_names_its_source() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 8_000_000
    text = (SHIPPED / "README.md").read_text()
    assert "Universal Dependencies English EWT" in text
    assert "CC BY-SA 4.0" in text
    assert load_tagger().meta["license"] == "CC BY-SA 4.0"


@needs(TREEBANK)
def test_accuracy_of_the_shipped_tagger() -> None:
    trainer = load_tool("train_tagger")
    nlp, test = load_tagger(), trainer.find(TREEBANK, "test")
    assert trainer.accuracy(nlp, test) >= 0.93
    assert trainer.accuracy(nlp, test, from_text=True) >= 0.92
    assert trainer.accuracy(nlp, [trainer.as_caption(sentence) for sentence in test]) >= 0.92
