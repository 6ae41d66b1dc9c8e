"""Captions of the generated world: true, and they leave something out."""

import re
from collections import Counter

import numpy as np
import pytest

from helpers.miniature import SMALL, mentioned_in
from helpers.paths import SHARED, needs
from miniature.captions import BRANDS, MEDIA, MONTHS, MOODS, ONE, PLACES, TAGS, THREE, TWO
from miniature.concepts import CONCEPTS, ID, STUFF, THINGS
from miniature.junk import RARE
from miniature.scenes import VISIBLE, Scene
from miniature.world import Captioned, scene_of

LEMMAS = SHARED / "data" / "entities" / "imagenet21k_lemmas.tsv"


@pytest.fixture(scope="module")
def captioned_scenes() -> list[tuple[Scene, Captioned]]:
    return [scene_of(SMALL, index) for index in range(1800)]


def test_captions_mention_only_what_is_shown_and_not_all_of_it(captioned_scenes: list[tuple[Scene, Captioned]]) -> None:
    shown, mentioned = [], []
    for scene, captioned in captioned_scenes:
        visible = {concept for concept in range(len(CONCEPTS)) if (scene.labels == concept).mean() >= VISIBLE}
        assert set(captioned.shown) == visible
        assert set(captioned.mentioned) == mentioned_in(captioned.text), captioned.text
        assert set(captioned.mentioned) < visible
        assert captioned.area == pytest.approx(np.isin(scene.labels, captioned.mentioned).mean())
        shown.append(len(visible))
        mentioned.append(len(captioned.mentioned))
    assert 3 <= np.mean(shown) <= 6
    assert np.mean(mentioned) < 0.5 * np.mean(shown)
    assert set(mentioned) == {1, 2, 3}


def test_a_plural_is_said_of_several_and_a_singular_of_one(captioned_scenes: list[tuple[Scene, Captioned]]) -> None:
    said = Counter[bool]()
    for scene, captioned in captioned_scenes:
        for concept in set(captioned.mentioned) - set(range(len(STUFF))):
            several = len(np.unique(scene.instances[scene.labels == concept])) > 1
            forms = [(noun.singular, noun.plural) for noun in CONCEPTS[concept].nouns if noun.singular != noun.plural]
            for number, words in enumerate(zip(*forms, strict=True)):
                if re.search(rf"(?i)\b({'|'.join(words)})\b", captioned.text):
                    assert several == bool(number), captioned.text
                    said[several] += 1
    assert said[True] > 100
    assert said[False] > 500


def test_things_and_stuff_are_each_mentioned_about_equally_often_and_more_often_than_any_distractor(
    captioned_scenes: list[tuple[Scene, Captioned]],
) -> None:
    texts = [captioned for _, captioned in captioned_scenes]
    mentions = Counter(concept for text in texts for concept in text.mentioned)
    assert set(mentions) == set(range(len(CONCEPTS)))
    stuff, things = ([mentions[ID[concept.name]] for concept in kind] for kind in (STUFF, THINGS))
    assert max(stuff) < 1.8 * min(stuff)
    assert max(things) < 1.8 * min(things)
    assert sum(things) / len(things) > sum(stuff) / len(stuff)  # things are smaller and harder to learn
    words = Counter(word for text in texts for word in set(re.findall(r"[a-z]+", text.text.lower())))
    single = [concept.nouns[0] for concept in CONCEPTS if " " not in concept.name]
    rarest = min(sum(words[form] for form in set(noun)) for noun in single)
    distractors = {word.lower() for phrase in (*PLACES, *BRANDS, *MEDIA, *MOODS, *MONTHS, *TAGS) for word in phrase.split()}
    assert max(words[word] for word in distractors) < rarest


def test_words_are_what_they_claim_to_be() -> None:
    assert len(STUFF) + len(THINGS) == len(CONCEPTS) >= 22
    assert len(set(ONE + TWO + THREE)) >= 30
    spoken = " ".join((*ONE, *TWO, *THREE, *PLACES, *BRANDS, *MEDIA, *MOODS, *MONTHS, *TAGS, *RARE))
    assert not mentioned_in(spoken)
    words = [word for concept in CONCEPTS for word in concept.words]
    assert len(words) == len(set(words))
    for concept in STUFF:
        assert all(mentioned_in(phrase) == {ID[concept.name]} for phrase in concept.phrases)
        for noun in concept.nouns:
            assert any(noun.singular in phrase.split() for phrase in concept.phrases)


@needs(LEMMAS)
def test_names_are_lemmas_of_imagenet_or_plain_scene_nouns() -> None:
    lemmas = {lemma.strip() for line in LEMMAS.read_text().splitlines() for lemma in line.split("\t")[1].split(",")}
    assert {concept.name for concept in CONCEPTS} - lemmas <= {"sea", "forest"}
