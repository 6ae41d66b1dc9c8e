"""Questions hide the entities of a caption, answers name them: in our form, and with the official quirks."""

import pickle
import random
import re
from functools import cache

import pytest
import torch

from filtering.captions.entities import EntityFinder
from filtering.captions.lexicon import load_lexicon, paper_names
from filtering.captions.tagger import load_tagger
from filtering.captions.vocabulary import PaperList
from helpers.tensors import assert_same
from owseg.methods.ovsegmentor.entity_texts import MOST_LABELS, NAMES, SYNONYMS, EntityTexts
from owseg.text import Tokenizer, clip_tokenizer, prompt_templates

TEMPLATES = prompt_templates("imagenet80")
UNREACHABLE = "bus spoon glass sofa shirt suitcase sink sheep skateboard skis snowboard surfboard sandwich"


@cache
def tokenizer() -> Tokenizer:
    return clip_tokenizer(1024, 24)


def texts(*, official: bool = False, mask_word: str = "[MASK]") -> EntityTexts:
    return EntityTexts(tokenizer(), mask_word, official=official)


def question(caption: str, *entities: str, official: bool = False) -> str:
    return texts(official=official).question_and_answer(caption, entities, random.Random(0))[0]


# ---- exact


@pytest.mark.parametrize(
    ("caption", "entities", "expected"),
    [
        # number, case, punctuation
        ("a dog on a road", ["dog"], "a [MASK] on a road"),
        ("Two DOGS, a dog.", ["dog"], "Two [MASK], a [MASK]."),
        ("(dog) \"dog\" dog/cat dog; 'dog' #dog", ["dog"], "([MASK]) \"[MASK]\" [MASK]/cat [MASK]; '[MASK]' #[MASK]"),
        ("Dog", ["dog"], "[MASK]"),
        ("boxes, couches, babies, potatoes", ["box", "couch", "baby", "potato"], "[MASK], [MASK], [MASK], [MASK]"),
        ("men, women and children", ["man", "woman", "child"], "[MASK], [MASK] and [MASK]"),
        ("mice and geese", ["mouse", "goose"], "[MASK] and [MASK]"),
        ("knives under leaves and sheep", ["knife", "leaf", "sheep"], "[MASK] under [MASK] and [MASK]"),
        ("firemen, policewomen, cacti", ["fireman", "policewoman", "cactus"], "[MASK], [MASK], [MASK]"),
        # possessives keep their ends
        ("the dog's bone", ["dog"], "the [MASK]'s bone"),
        ("the dog’s bone", ["dog"], "the [MASK]’s bone"),
        ("the dogs' house", ["dog"], "the [MASK]' house"),
        ("men's shoes", ["man"], "[MASK]'s shoes"),
        # whole words only
        ("a category of catfish and a cat", ["cat"], "a category of catfish and a [MASK]"),
        ("a dog-friendly sheepdog", ["dog"], "a [MASK]-friendly sheepdog"),
        ("dog_house dog2 dog", ["dog"], "[MASK]_house dog2 [MASK]"),
        # names of several words, the longest first, and only where they stand together
        ("under a traffic light", ["traffic light"], "under a [MASK]"),
        ("Traffic-Lights and traffic  lights", ["traffic light"], "[MASK] and [MASK]"),
        ("in traffic, light", ["traffic light"], "in traffic, light"),
        ("light traffic", ["traffic light"], "light traffic"),
        ("a hot dog and a dog", ["dog", "hot dog"], "a [MASK] and a [MASK]"),
        ("a hot dog and a dog", ["dog"], "a hot [MASK] and a [MASK]"),
        ("ends in traffic", ["traffic light"], "ends in traffic"),
        ("a T-shirt, a t shirt, t - shirts", ["t-shirt"], "a [MASK], a [MASK], [MASK]"),
        ("a Rubik's Cube", ["rubik's cube"], "a [MASK]"),
        # what the official synonyms send to a stored name, and a few more that curation does
        ("a man, two brides and kids", ["people"], "a [MASK], two [MASK] and [MASK]"),
        ("an airplane, a building, a couch", ["aeroplane", "house", "sofa"], "an [MASK], a [MASK], a [MASK]"),
        ("a man and two people", ["person"], "a man and two [MASK]"),
        ("on a ski, on skis", ["skis"], "on a [MASK], on [MASK]"),
        # what was not stored stays; so do spaces
        ("a  cat \t on a road \n", [], "a  cat \t on a road \n"),
        ("a cat", ["dog"], "a cat"),
        ("<PERSON> and a person", ["person"], "<PERSON> and a [MASK]"),
    ],
)
def test_every_mention_is_one_masked_word(caption: str, entities: list[str], expected: str) -> None:
    assert question(caption, *entities) == expected


def test_answers_fill_whole_templates_with_the_stored_names_in_order() -> None:
    drawn = {texts().question_and_answer("a cat and men", ["people", "cat", "people"], random.Random(i))[1] for i in range(300)}
    assert len(drawn) > 40
    assert drawn <= {template.replace("{}", "people and cat") for template in TEMPLATES}


def test_without_entities_the_question_is_the_caption_and_the_answer_stops_where_they_would_be() -> None:
    asked, answer = texts().question_and_answer("nothing's here.", [], random.Random(0))
    assert asked == "nothing's here."
    assert answer in {template.split("{}")[0].rstrip() for template in TEMPLATES}


# ---- official


@pytest.mark.parametrize(
    ("caption", "expected", "found"),
    [
        ("a dog and a cat.", "a [MASK] and a [MASK]", "dog and cat"),
        ("Dogs run. men walk", "[MASK] run [MASK] walk", "dog and people"),
        ("a dog, a cat", "a dog, a [MASK]", "cat"),  # only full stops are taken off
        ("the dog's bone", "the [MASK] bone", "dog"),
        ("sitting in his house", "itting in hi [MASK]", "house"),  # the letter s goes from both ends
        ("a bus. BUSES Bus", "a bu [MASK] Bu", "bus"),
        ("sheep Sheep", "heep [MASK]", "sheep"),
        ("knives, knives babies", "knives, knive babie", ""),
        ("a couch and a sofa", "a [MASK] and a ofa", "sofa"),
        ("a T-shirt", "a T-shirt", ""),
        ("the U.S. flag isn't big", "the US flag isnt big", ""),
        ("a dog\na  cat ", "a dog\na  [MASK] ", "cat"),  # words lie between single spaces
        ("a man on a skis and a ski", "a [MASK] on a ki and a ki", "people"),
        ("an airplane at the hotel", "an [MASK] at the [MASK]", "aeroplane and house"),
        ("", "", ""),
    ],
)
def test_official_quirks(caption: str, expected: str, found: str) -> None:
    asked, answer = texts(official=True).question_and_answer(caption, [], random.Random(0))
    assert asked == expected
    assert answer in {template.split("{}")[0] + found for template in TEMPLATES}


def test_the_words_that_the_official_code_cannot_find_in_lower_case() -> None:
    missed = {name for name in NAMES if question(f"one {name} there", official=True) != "one [MASK] there"}
    assert missed == set(UNREACHABLE.split())
    assert [question(f"one {name} there", name) for name in UNREACHABLE.split()] == ["one [MASK] there"] * 13


def test_official_questions_look_for_stored_names_of_other_lists_too() -> None:
    asked, answer = texts(official=True).question_and_answer("an owl, two owls", ["owl"], random.Random(0))
    assert asked == "an owl, two [MASK]"
    assert answer.endswith("owl")


def test_the_official_list_is_the_one_that_curation_has() -> None:
    assert tuple(dict.fromkeys(paper_names().values())) == NAMES
    assert {word.lower(): name for word, name in paper_names().items() if word.lower() != name} == SYNONYMS


# ---- both


CAPTIONS = [
    "A young man and two women are walking with their dogs, near the traffic lights.",
    "Children's toys and a teddy bear on the T-shirt of the bride",
    "KNIVES, FORKS AND WINE GLASSES ON A WOODEN TABLE",
    "Aeroplanes over a harbor; people in boats & on bicycles",
    "the sheep by a bus stop",
]


@pytest.mark.parametrize("nouns", ["frequency", "paper"])
def test_what_curation_finds_is_masked(nouns: str) -> None:
    lexicon = load_lexicon()
    if nouns == "paper":
        lexicon = PaperList(match="nouns").lexicon(lexicon)
    found = EntityFinder(load_tagger(), lexicon)(CAPTIONS)
    pairs = [(caption, name) for caption, names in zip(CAPTIONS, found, strict=True) for name in names]
    assert len(pairs) > 12
    assert [(caption, name) for caption, name in pairs if "[MASK]" not in question(caption, name)] == []


@pytest.mark.parametrize("official", [False, True])
def test_batches_are_tokens_of_questions_answers_and_prompts(official: bool) -> None:
    maker = texts(official=official, mask_word="m")
    captions, entities = ["a dog on a road", "a wall"], [["dog"], []]
    found = maker(captions, entities, ["dog", "wall"], [random.Random(5), random.Random(6)])
    own = [random.Random(5), random.Random(6)]
    pairs = [maker.question_and_answer(*sample) for sample in zip(captions, entities, own, strict=True)]
    tokenize = tokenizer()

    assert [asked for asked, _ in pairs] == ["a m on a road", "a wall"]
    assert list(found) == ["question", "answer", "prompt"]
    assert torch.equal(found["question"], tokenize([asked for asked, _ in pairs]))
    assert torch.equal(found["answer"], tokenize([answer for _, answer in pairs]))
    assert torch.equal(found["prompt"], tokenize(["A photo of dog", "A photo of wall"]))
    assert list(maker(captions, entities, None, own)) == ["question", "answer"]


def test_labels_are_prompts_of_one_entity_and_numbers_of_all() -> None:
    asked: list[list[str]] = []

    def tokenize(texts: list[str]) -> torch.Tensor:
        asked.append(texts)
        return torch.zeros(len(texts), 1)

    maker = EntityTexts(tokenize, "m", official=False, labels=True)  # type: ignore[arg-type]
    entities = [["dog", "cat", "dog"], ["cat"], [], [str(number) for number in range(20)]]
    seen = set()
    for seed in range(20):
        own = [random.Random(4 * seed + place) for place in range(4)]
        numbers = maker(["a dog and a cat", "a cat", "", "many"], entities, None, own)["labels"]
        two, one, none, _ = [re.findall("dog|cat", text) for text in asked[-1]]
        assert [int((row >= 0).sum()) for row in numbers] == [2, 1, 0, MOST_LABELS]
        assert numbers[1, 0] in numbers[0, :2]
        assert (len(two), one, none) == (1, ["cat"], [])
        assert (two == one) == (numbers[0, 0] == numbers[1, 0])  # the prompt's own comes first
        seen.add(*two)
    assert seen == {"dog", "cat"}


@pytest.mark.parametrize("official", [False, True])
def test_a_seed_decides_and_makers_travel_to_loader_processes(official: bool) -> None:
    maker = texts(official=official)
    again = pickle.loads(pickle.dumps(maker))
    batch = (["a dog and a cat"] * 16, [["dog", "cat"]] * 16, ["dog"] * 16)

    def drawn(maker: EntityTexts, seed: int) -> dict[str, torch.Tensor]:
        return maker(*batch, [random.Random(16 * seed + place) for place in range(16)])

    first, second, other = drawn(maker, 1), drawn(again, 1), drawn(maker, 2)
    assert_same(second, first)
    assert not torch.equal(first["answer"], other["answer"])
    assert torch.equal(first["question"], other["question"])


@pytest.mark.parametrize(
    ("caption", "entities", "exact", "official"),
    [
        ("", [""], "", ""),
        (" ", ["dog"], " ", " "),
        ("🐕 dog 🐕\u200d🦺", ["dog", "🐕"], "🐕 [MASK] 🐕\u200d🦺", "[MASK] [MASK] 🐕\u200d🦺"),
        (
            "a.*(dog)+[c]\\b $dog^ {} %s \\1",
            ["(dog)+", "{}"],
            "a.*([MASK])+[c]\\b $[MASK]^ {} %s \\1",
            "a*(dog)+[c]\\b $dog^ [MASK] % \\1",
        ),
        ("İ ß i\0\ud800", ["İ", "ß"], "[MASK] [MASK] i\0\ud800", "[MASK] [MASK] i\0\ud800"),
        ("dog " * 20_000, ["dog"], "[MASK] " * 20_000, "[MASK] " * 20_000),
        (
            "x" * 90_000 + "-" * 90_000 + "dog",
            ["dog", "x x"],
            "x" * 90_000 + "-" * 90_000 + "[MASK]",
            "x" * 90_000 + "-" * 90_000 + "dog",
        ),
    ],
)
def test_hostile_captions_are_texts_like_others(caption: str, entities: list[str], exact: str, official: str) -> None:
    assert question(caption, *entities) == exact
    assert question(caption, *entities, official=True) == official
