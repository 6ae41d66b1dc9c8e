"""What the world is made of: ten kinds of stuff, fifteen kinds of things, and the words that people use for them."""

from dataclasses import dataclass
from typing import NamedTuple


def listed(text: str) -> tuple[str, ...]:
    """The words and phrases of a text that commas part."""
    return tuple(item.strip() for item in text.split(","))


class Noun(NamedTuple):
    """One countable word in both numbers."""

    singular: str
    plural: str


@dataclass(frozen=True)
class Concept:
    """One class of the world. The singular of `nouns[0]` is its name; the other nouns are synonyms.

    `phrases` are ready-made noun phrases for stuff, which takes neither a number nor a colour.
    """

    nouns: tuple[Noun, ...]
    phrases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.nouns[0].singular

    @property
    def is_stuff(self) -> bool:
        return bool(self.phrases)

    @property
    def words(self) -> frozenset[str]:
        """Every form of every word for the concept."""
        return frozenset(form for noun in self.nouns for form in noun)


def _nouns(*forms: str) -> tuple[Noun, ...]:
    """`"cat"` takes a regular plural; `"fish/fish"` gives its own."""
    return tuple(Noun(singular, plural or singular + "s") for singular, _, plural in (form.partition("/") for form in forms))


STUFF = (
    Concept(_nouns("sky/skies"), ("the sky", "a clear sky", "a wide sky", "the open sky", "sky", "cloudy skies")),
    Concept(
        _nouns("mountain"), ("the mountains", "a mountain", "a rocky mountain", "high mountains", "mountain", "old mountains")
    ),
    Concept(_nouns("forest", "woodland"), ("the forest", "a dark forest", "forest", "a deep forest", "a quiet woodland")),
    Concept(_nouns("wall", "brickwork"), ("a brick wall", "the wall", "an old wall", "wall", "a red wall", "brickwork")),
    Concept(_nouns("sea", "ocean"), ("the sea", "a calm sea", "sea", "the deep sea", "the ocean", "a rough sea")),
    Concept(
        _nouns("grass/grasses", "lawn", "meadow"),
        ("the grass", "green grass", "tall grass", "grass", "fresh grass", "a lawn", "a green meadow"),
    ),
    Concept(_nouns("sand", "beach/beaches"), ("the sand", "white sand", "warm sand", "sand", "golden sand", "a sandy beach")),
    Concept(_nouns("road", "street"), ("the road", "an empty road", "a long road", "road", "a grey road", "a street")),
    Concept(_nouns("snow/snows"), ("the snow", "fresh snow", "snow", "deep snow", "white snow")),
    Concept(_nouns("floor", "parquet"), ("a wooden floor", "the floor", "floor", "a clean floor", "an old floor", "parquet")),
)
"""In the order in which a view stacks them, from far and high to near and low."""

THINGS = tuple(
    Concept(nouns)
    for nouns in (
        _nouns("car", "automobile", "sedan"),
        _nouns("bus/buses", "coach/coaches"),
        _nouns("boat", "sailboat", "yacht"),
        _nouns("house", "cottage"),
        _nouns("tree", "oak"),
        _nouns("balloon"),
        _nouns("flower", "blossom"),
        _nouns("fish/fish", "goldfish/goldfish"),
        _nouns("cat", "kitten", "kitty/kitties"),
        _nouns("mushroom", "toadstool"),
        _nouns("banana"),
        _nouns("umbrella", "parasol"),
        _nouns("clock", "timepiece"),
        _nouns("butterfly/butterflies", "monarch butterfly/monarch butterflies"),
        _nouns("traffic light", "stoplight", "traffic signal"),
    )
)

CONCEPTS = (*STUFF, *THINGS)
"""A concept's id, in every label map before it is encoded for a benchmark, is its place here."""

ID = {concept.name: index for index, concept in enumerate(CONCEPTS)}
"""Concept name to id."""
