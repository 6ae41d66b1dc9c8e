"""Captions that nobody writes, for rules that must take any."""

import random

PIECES = [
    *"aBkKzZ019éßſKİıŉ½²٣Ωаאあ狗🐕’'_-.,;:!?@#&<>/()[]{}+*%$\"\n\t\v\x1c\u00a0\u0345\u3000",
    *[
        "the",
        "dog",
        "Dogs'",
        "dog's",
        "men’s",
        "'cat'",
        "kombinezon",
        "de",
        "la",
        "und",
        "new",
        "straße",
        "STRASSE",
        "don't miss",
    ],
    *["<PERSON>", "<PER", "SON>", "<b>", "</div>", "&amp;", "&#39;", "https:", "www.", "a.com", "b.Jpg", "DSC_0123", "[url"],
    *["click", "Click Here", "free-shipping", "Image may contain", "bob@dogs.example", "aaaaaa", "KKKKKKK", "ſſſsSs", "!!!"],
    *["415-744-8666", "+44 20 7946 0958", "(02) 1234 5678", "call 850", "244 5117", "٤١٥-744-8666", "1999", "x" * 90],
]


def strange_captions(number: int) -> list[str]:
    draw = random.Random(0)
    return [
        "".join(draw.choice(PIECES) + draw.choice(["", " ", " "]) for _ in range(draw.randint(0, 14))) for _ in range(number)
    ]
