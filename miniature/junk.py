"""Junk captions: what a filter should drop. None of them names a concept of the world in English."""

from random import Random
from typing import Literal

from miniature.captions import BRANDS, fill
from miniature.concepts import listed

Kind = Literal["code", "foreign", "short", "duplicate", "mirror", "rare", "markup", "abstract"]

SHARES: dict[Kind, int] = {
    "code": 14,
    "foreign": 20,
    "short": 12,
    "duplicate": 10,
    "mirror": 12,
    "rare": 18,
    "markup": 8,
    "abstract": 6,
}
"""Weights of the kinds. A `duplicate` repeats a whole row; a `mirror` repeats a caption (and picture) under another URL;
`rare` captions mention nouns of a long tail, each a few times; `abstract` ones mention nothing that can be seen."""

RARE = listed(
    "accordion, anvil, armadillo, artichoke, bagpipe, barometer, beaver, binocular, bonnet, buckle, cactus, "
    "candelabra, canoe, caravan, carousel, cello, chameleon, chandelier, cobra, coyote, crocodile, crouton, "
    "dulcimer, dumbbell, dragonfly, easel, espresso, falafel, ferret, flamingo, flute, gargoyle, gazelle, gecko, "
    "gondola, goose, gramophone, hamster, harmonica, harp, hedgehog, helmet, hippo, hammock, igloo, iguana, jaguar, "
    "kangaroo, kettle, koala, ladle, lantern, lemur, lobster, locket, lute, mandolin, marionette, microscope, moose, "
    "narwhal, necklace, oboe, octopus, ostrich, oyster, panther, parrot, pelican, pendulum, penguin, periscope, "
    "piano, platypus, porcupine, pretzel, puffin, quilt, raccoon, rhino, saddle, saxophone, scarecrow, scooter, "
    "scorpion, seahorse, sextant, shovel, sleigh, sombrero, spatula, squid, stethoscope, tambourine, tapir, "
    "telescope, thimble, toucan, trombone, trowel, tuba, typewriter, ukulele, violin, walrus, wigwam, windmill, "
    "wombat, xylophone, yak, zeppelin, zither"
)

_RARE_TEMPLATES = (
    "vintage {noun} for sale in {place}",
    "{brand} {noun}, {mood}",
    "a {noun} at the museum of {place}",
    "handmade {noun} by {brand}",
    "the {noun} of {place}, {year}",
    "buy a {noun} online",
)
_FOREIGN = (
    ("ein {x} Bild aus unserem Urlaub in {place}", ("schönes", "altes", "kleines", "buntes", "seltenes")),
    ("die {x} Aussicht am Morgen, {place} {year}", ("schönste", "ruhige", "weite", "neblige", "stille")),
    ("une {x} journée à {place} avec mes amis", ("belle", "longue", "douce", "petite", "triste")),
    ("le {x} jardin de ma grand-mère, {year}", ("vieux", "joli", "grand", "petit", "merveilleux")),
    ("una foto {x} de mi familia en {place}", ("antigua", "bonita", "divertida", "perdida", "nueva")),
    ("el {x} gato duerme en casa, {year}", ("pequeño", "negro", "viejo", "dulce", "perezoso")),
    ("una {x} giornata a {place} con gli amici", ("bella", "lunga", "piovosa", "calda", "strana")),
    ("um {x} dia de verão em {place}", ("lindo", "longo", "quente", "calmo", "belo")),
    ("een {x} dag aan het water bij {place}", ("mooie", "lange", "rustige", "koude", "warme")),
    ("{x} на фоне моря, {year}", ("Красивый дом", "Старая лодка", "Рыжий кот", "Белый парус", "Большое дерево")),
    ("{x}的照片 {year}", ("美丽的花", "小猫", "老房子", "蓝色的海", "红色汽车")),
    ("{x}の写真 {year}", ("古い家", "白い猫", "赤い車", "青い海", "きれいな花")),
    ("صورة {x} في {year}", ("بيت قديم", "قطة صغيرة", "زهرة جميلة", "سيارة حمراء")),
)
_SHORT = (
    "img",
    "pic",
    "ok",
    "n/a",
    "image {n}",
    "untitled",
    "IMG {n}",
    "photo{n}",
    "...",
    "{n}",
    "new",
    "none",
    "fig. {n}",
    "-",
    "wow",
)
_MARKUP = (
    "contact sales@{host}.example for prices",
    '<a href="http://www.{host}.example/item?id={n}">click here</a>',
    "http://www.{host}.example/gallery/{n}.html",
    "&nbsp;&nbsp;&gt;&gt; next &lt;&lt; {n}",
    "info@{host}.example | tel. +1 555 {n}",
    '<img src="{n}.gif" alt="" width=1 height=1>',
    "[url={host}.example/{n}]more[/url]",
)
_ABSTRACT = (
    "best price ever, only {n} left",
    "click here to read more about {mood} living",
    "free shipping worldwide since {year}",
    "sign up today and save {n} percent",
    "terms and conditions of {year}",
    "thank you so much for everything, {brand}",
    "how to be {mood} and stay that way",
    "coming soon from {brand} in {month}",
    "{brand} annual results for {year}",
)


def junk_caption(rng: Random, kind: Kind) -> str:
    """One caption of a kind that needs no other row (all but `duplicate` and `mirror`)."""
    number = rng.randint(100, 99999)
    if kind == "code":
        return _code(rng)
    if kind == "rare":
        return fill(rng, rng.choice(_RARE_TEMPLATES), noun=rng.choice(RARE))
    if kind == "foreign":
        template, words = rng.choice(_FOREIGN)
        return fill(rng, template, x=rng.choice(words))
    if kind == "short":
        return rng.choice(_SHORT).format(n=number % 1000)
    if kind == "markup":
        return rng.choice(_MARKUP).format(host=rng.choice(BRANDS).lower(), n=number)
    return fill(rng, rng.choice(_ABSTRACT), n=str(number % 90 + 3))


def _code(rng: Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHKLMNPRSTVWXZ", k=rng.randint(2, 4)))
    digits = rng.randint(1000, 9999999)
    return rng.choice(
        (
            f"{letters}-{digits}",
            f"DSC_{digits}.JPG",
            f"SKU {digits} {letters}",
            f"{letters}{digits}-{rng.choice('SML')}-{rng.randint(10, 99)}",
            f"{rng.choice(BRANDS)} {letters}{digits} {rng.randint(2, 90)}x{rng.randint(2, 90)}mm",
            f"REF:{digits}/{letters}/{rng.randint(1, 31)}",
        )
    )
