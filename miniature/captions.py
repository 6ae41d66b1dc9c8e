"""Captions as the web has them: true ones, which mention some of what a scene shows."""

from collections.abc import Sequence
from random import Random

from miniature.concepts import CONCEPTS, ID, Noun, listed
from miniature.scenes import Depicted

MENTIONS = ((1, 50), (2, 37), (3, 13))
"""How many concepts a caption mentions, with weights. It is always fewer than the scene shows."""
SYNONYMS = 0.15
"""Share of mentions that use another word than the concept's name."""

THING_WEIGHT = 2.2
STUFF_WEIGHTS = {"sky": 1.15, "forest": 1.1, "wall": 1.1}
"""Far stuff is at times covered; these weights even out how often each concept is mentioned."""

SIZES = ("small", "little", "tiny", "big", "large")
LOOKS = ("old", "new", "pretty", "lovely", "funny", "cute", "beautiful", "nice", "lonely", "famous", "bright", "classic")
NUMBERS = {2: ("two", "a pair of", "2", "both"), 3: ("three", "3", "a few", "several"), 4: ("four", "4", "many", "several")}

ONE = (
    "{a}",
    "{a} close up",
    "{a} in {place}",
    "{a}, {mood}",
    "{a} - {brand}",
    "look at {a}",
    "how to draw {a} step by step",
    "here is {a} again",
    "we found {a} in {place}",
    "{mood} {bare}",
    "{bare} by {brand}",
    "{a} seen in {place}, {year}",
    "{brand}: {a}",
    "why we love {a}",
    "this is {a}",
    "{bare} in {month}",
    "{medium} of {a}",
    "my {medium} of {a}",
)
TWO = (
    "{a} and {b}",
    "{a} with {b}",
    "{a} near {b}",
    "{a} by {b}",
    "{a} next to {b}",
    "{a}, {b}",
    "{a} and {b} in {place}",
    "{a} beside {b} - {brand}",
    "{medium} of {a} and {b}",
    "{mood} {bare} with {b}",
    "{a} together with {b}, {month} {year}",
    "there is {a} close to {b}",
    "{a} meets {b}",
    "{bare} & {b}",
    "{a} not far from {b}",
)
THREE = (
    "{a}, {b} and {c}",
    "{a} and {b} with {c}",
    "{a} near {b} and {c}",
    "{medium} of {a}, {b} and {c}",
    "{a} between {b} and {c}",
    "{mood}: {a}, {b}, {c}",
    "{a}, {b}, {c} by {brand}",
    "{a} with {b} by {c} in {place}",
)
TAILS = (
    "",
    "",
    "",
    "",
    "",
    "",
    ", {mood}",
    " | {brand}",
    " ({year})",
    " - free download",
    " #{tag}",
    ", {month} {year}",
    "!",
    "...",
    " hd",
    " royalty free",
)

PLACES = listed(
    "Lisbon, Oslo, Kyoto, Texas, Vermont, Wales, Chile, Kenya, Malta, Naples, Quebec, Iceland, Goa, Peru, Sydney, "
    "Bergen, Crete, Utah, Nepal, Tuscany, Ghana, Dublin, Hanoi, Bavaria"
)
BRANDS = listed(
    "Norvana, Pixelby, Almondo, Trevik, Zuno, Hartwell, Ostrum, Belvani, Quillo, Fenwick, Lumora, Kestrand, Ovaline, Mirabo"
)
MEDIA = listed(
    "photo, picture, image, drawing, illustration, sketch, stock photo, clip art, vector, snapshot, print, postcard, "
    "wallpaper, painting, photograph, poster, render, watercolor"
)
MOODS = listed(
    "peaceful, happy, so calm, dreamy, good vibes, cheerful, relaxing, nostalgic, perfect, wonderful, simply "
    "amazing, quiet, romantic, mysterious, delightful, charming"
)
MONTHS = listed("January, February, March, April, May, June, July, August, September, October, November, December")
TAGS = listed("nofilter, instagood, throwback, weekend, wanderlust, inspiration, handmade, picoftheday, artlife")


def caption(rng: Random, shown: Sequence[Depicted]) -> tuple[str, tuple[int, ...]]:
    """A true caption for a scene, and the ids of the concepts that it mentions: one to three, fewer than are shown."""
    mentioned = _choose(rng, shown)
    template = rng.choice((ONE, TWO, THREE)[len(mentioned) - 1])
    nouns = [_noun(rng, depicted) for depicted in mentioned]
    phrases = {slot: _phrase(rng, depicted, noun) for slot, depicted, noun in zip("abc", mentioned, nouns, strict=False)}
    bare = _bare(rng, mentioned[0], nouns[0])
    text = fill(rng, template + rng.choice(TAILS), bare=bare, **phrases)
    style = rng.random()
    if style < 0.25:
        text = text[0].upper() + text[1:]
    elif style < 0.3:
        text = text.title()
    return text, tuple(depicted.concept for depicted in mentioned)


def fill(rng: Random, template: str, **slots: str) -> str:
    """`template` with its slots filled: the given ones, and distractors (place, brand, mood, ...) that nothing depicts."""
    return template.format(
        place=rng.choice(PLACES),
        brand=rng.choice(BRANDS),
        medium=rng.choice(MEDIA),
        mood=rng.choice(MOODS),
        month=rng.choice(MONTHS),
        year=rng.randint(1998, 2024),
        tag=rng.choice(TAGS),
        **slots,
    )


def _choose(rng: Random, shown: Sequence[Depicted]) -> list[Depicted]:
    """Some of what is shown, in random order; rarer concepts are likelier, so that all are mentioned about equally often."""
    numbers, weights = zip(*MENTIONS, strict=True)
    number = max(1, min(rng.choices(numbers, weights=weights)[0], len(shown) - 1))
    left, chosen = list(shown), []
    for _ in range(number):
        pick = rng.choices(left, weights=[_weight(depicted.concept) for depicted in left])[0]
        left.remove(pick)
        chosen.append(pick)
    return chosen


def _weight(concept: int) -> float:
    return STUFF_WEIGHTS.get(CONCEPTS[concept].name, 1.0) if CONCEPTS[concept].is_stuff else THING_WEIGHT


def _noun(rng: Random, depicted: Depicted) -> Noun:
    nouns = CONCEPTS[depicted.concept].nouns
    return rng.choice(nouns[1:]) if len(nouns) > 1 and rng.random() < SYNONYMS else nouns[0]


def _adjectives(rng: Random, depicted: Depicted) -> str:
    """ "", "red ", "small " or "small red ": the colour is the true one."""
    words = []
    if rng.random() < 0.25:
        words.append(rng.choice(LOOKS if rng.random() < 0.5 or depicted.count > 1 else _sizes(depicted)))
    if depicted.colour and rng.random() < 0.3:
        words.append(depicted.colour)
    return "".join(word + " " for word in words)


def _sizes(depicted: Depicted) -> Sequence[str]:
    return SIZES[:3] if depicted.share < 0.1 else SIZES[3:]


def _bare(rng: Random, depicted: Depicted, noun: Noun) -> str:
    """The noun without an article: "red car", "cars", "sea"."""
    if CONCEPTS[depicted.concept].is_stuff:
        return noun.singular
    return _adjectives(rng, depicted) + (noun.plural if depicted.count > 1 else noun.singular)


def _phrase(rng: Random, depicted: Depicted, noun: Noun) -> str:
    """A noun phrase: "the little car", "two red cars", "my cat", "green grass"."""
    concept = CONCEPTS[depicted.concept]
    if concept.is_stuff:
        named = [phrase for phrase in concept.phrases if noun.singular in phrase.split() or noun.plural in phrase.split()]
        return rng.choice(named)
    bare = _bare(rng, depicted, noun)
    if depicted.count > 1:
        number = rng.choice(NUMBERS[min(depicted.count, 4)])
        return rng.choice((f"{number} {bare}", f"{number} {bare}", bare, f"the {bare}", f"some {bare}"))
    article = "an" if bare[0] in "aeiou" else "a"
    return rng.choice((f"{article} {bare}", f"{article} {bare}", f"{article} {bare}", f"the {bare}", bare, f"my {bare}"))


def words_to_ids() -> dict[str, int]:
    """Every word form that names a concept, in lower case, to the concept's id."""
    return {word: ID[concept.name] for concept in CONCEPTS for word in concept.words}
