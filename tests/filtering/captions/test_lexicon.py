"""The names of visible things: how they are built, and one name for a thing however it is written."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from filtering.captions.entities import NounLemmas, name_of
from filtering.captions.lexicon import FOLDER, NOT_AN_ENTITY, Lexicon, load_lexicon, spelling
from helpers.paths import REPO

LEMMAS = NounLemmas()
OTHER_WORDS = {"cineraria", "dolmen", "shittim", "signore"}
"""Singulars that are the plural of another word by their looks: cinerarium, dolman, shittah, signora."""


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_lexicon()


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """`tools/build_lexicon.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "tools"))
        yield importlib.import_module("build_lexicon")


def read(word: str, lexicon: Lexicon) -> str:
    """The entity that a noun is, as captions are read."""
    return name_of(LEMMAS(word), lexicon)


def timm_info() -> Path:
    return Path(str(importlib.util.find_spec("timm").origin)).parent / "data" / "_info"  # type: ignore[union-attr]


def test_lexicon_is_consistent(lexicon: Lexicon) -> None:
    for written, name in lexicon.names.items():
        assert written == spelling(written)
        if name != NOT_AN_ENTITY:
            assert lexicon.names[spelling(name)] == name, f"{written} → {name} is not canonical"


@pytest.mark.parametrize(
    ("written", "name"),
    [("people", "person"), ("bike", "bicycle"), ("tv", "tv"), ("television", "tv"), ("jean", "jeans"), ("mom", "mother"),
     ("dining table", "table"), ("sea lion", "sea lion"), ("photo", NOT_AN_ENTITY), ("tree", "tree"), ("snow", "snow")],
)  # fmt: skip
def test_spellings(written: str, name: str) -> None:
    assert load_lexicon().names[written] == name


def test_the_lexicon_is_what_its_script_builds(tool: ModuleType) -> None:
    shipped = (FOLDER / "imagenet21k.tsv").read_text()
    assert shipped == tool.as_text(tool.build(timm_info()))


# ---- one thing, one name


def test_plural_and_singular_share_a_name(lexicon: Lexicon, tool: ModuleType) -> None:
    """Over the whole lexicon: where both numbers of a word are in it. What is written by hand may part them (the woods)."""
    by_hand = {spelling(name) for name in tool.by_hand()} | set((FOLDER / "stop.txt").read_text().split("\n"))
    apart = []
    for written, name in lexicon.names.items():
        *opening, last = written.split()
        for lemma in LEMMAS(last)[:-1]:
            singular = " ".join([*opening, lemma])
            if lexicon.names.get(singular, name) != name and not {written, singular} & by_hand and written not in OTHER_WORDS:
                apart.append((written, name, singular, lexicon.names[singular]))
    assert apart == []


def test_spellings_of_a_synset_share_a_name(lexicon: Lexicon, tool: ModuleType) -> None:
    """Hyphens and spaces do not count, nor does what the plural hides: lens and lense, axe and ax, hankie and hanky."""
    apart = []
    for synset, text in tool.read(timm_info(), "lemma"):
        names = [spelling(lemma) for lemma in text.split(", ") if tool.section_of(synset)]
        known = [name for name in names if lexicon.names.get(name)]
        for at, one in enumerate(known):
            for other in known[:at]:
                alike = tool.letters(one) == tool.letters(other) or tool.plural_of(one) == tool.plural_of(other)
                if alike and lexicon.names[one] != lexicon.names[other]:
                    apart.append((one, other))
    assert apart == []


@pytest.mark.parametrize(
    "words",
    """lens lenses lense; axe axes ax; puppy puppies; syringe syringes; ox oxen; knife knives; glass glasses; egg eggs
    smoothie smoothies smoothy; scarf scarves; granny grannies grandmother; hankie hankies hanky; t-shirt tshirt tee tees
    harbor harbour harbours; parakeet parrakeet parakeets; whiskey whisky whiskies; teddy teddies; cactus cacti cactuses
    algae alga; plier pliers; yogurt yoghurt yoghourts; pickaxe pickaxes pickax; woods forest forests woodland""".replace(
        "\n", ";"
    ).split(";"),
)
def test_spellings_and_numbers_of_a_thing(lexicon: Lexicon, words: str) -> None:
    names = {read(word, lexicon) if "-" not in word else lexicon.names[spelling(word)] for word in words.split()}
    assert len(names) == 1, names
    assert names != {NOT_AN_ENTITY}


@pytest.mark.parametrize(
    ("one", "other"),
    [("axe", "axis"), ("scooter", "scoter"), ("hammock", "hummock"), ("dolmen", "dolman"), ("leg", "peg"), ("plane", "planer"),
     ("canvas", "can"), ("bass", "bas"), ("glass", "eyeglasses"), ("syringe", "syrinx"), ("galaxy", "galax")],
)  # fmt: skip
def test_other_words_keep_their_names(lexicon: Lexicon, one: str, other: str) -> None:
    assert read(one, lexicon) != read(other, lexicon)


# ---- people by what they do, clothes, the ground and the weather


IN_CAPTIONS = """snowboarder surfer hiker goalie cyclist puddle wetsuit couple windsurfer skateboarder skier wakeboarder kayaker
    diver snorkeler jogger gymnast wrestler mountaineer paramedic ballerina cowgirl bassist cellist pianist barista busker
    onlooker spectator teen grandson uncle nun librarian linebacker batsman drysuit tracksuit headband wristband snowsuit
    leotard snowboard wakeboard paddleboard rain storm lightning tornado blizzard icicle rainstorm foliage cactus nose tail paw
    beak hoof ponytail boulder creek lagoon marsh boardwalk archway hallway chimney ladder dinosaur mermaid gift badge"""


def test_words_of_captions_are_there(lexicon: Lexicon) -> None:
    assert [word for word in IN_CAPTIONS.split() if lexicon.names.get(word) != word] == []


@pytest.mark.parametrize(
    ("word", "name"),
    [("bicyclist", "cyclist"), ("goalkeeper", "goalie"), ("woods", "forest"), ("wet suit", "wetsuit"), ("teenager", "teen"),
     ("grandma", "grandmother"), ("bathing suit", "swimsuit"), ("snow boarder", "snowboarder"), ("cop", "police officer")],
)  # fmt: skip
def test_other_words_for_them(lexicon: Lexicon, word: str, name: str) -> None:
    assert lexicon.names[word] == name
