"""Links that hold a bit of everything, and what a corpus built from them consists of."""

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from filtering.captions.corpus import FINDINGS, FilterConfig
from filtering.captions.passes import BUILD
from filtering.captions.reader import SourceConfig

HOSTILE = [
    "\0\0\0",
    '"',
    "\t\t",
    "<PERSON>" * 400,
    "\u202e reversed dog",
    "a" * 70_000,
    "&#0; &#xD800; &bogus;",
    "🐕🐕🐕 dog dog",
]


def write_links(path: Path, seed: int = 0, rows: int = 400) -> list[str]:
    """Captions in which "dog" is twice as frequent as "cat", and so on, with junk and duplicates; shuffled by `seed`."""
    draw = random.Random(7)
    nouns = ["dog"] * 8 + ["cat"] * 4 + ["red car"] * 2 + ["tree"]
    captions = [f"a {draw.choice(nouns)} near the {draw.choice(nouns)} in picture {number}" for number in range(rows)]
    captions += [
        "short",
        "<b>a dog</b> in html",
        "собака бежит по траве",
        "an idea about the meaning of time",
        "the walrus sang alone",
    ]
    captions += [caption.replace("\t", " ") for caption in HOSTILE] + captions[:20]
    lines = [f"http://pics.example/{number % (rows + 13)}.jpg\t{caption}" for number, caption in enumerate(captions)]
    lines.append("a row without an address")
    random.Random(seed).shuffle(lines)
    path.write_text("\n".join(lines))
    return lines


def config_for(path: Path, **settings: Any) -> FilterConfig:
    return FilterConfig(source=SourceConfig(path=str(path)), top_k=3, shards=4, **settings)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def bytes_of(out: Path) -> dict[str, bytes]:
    names = ("entities.parquet", "index.parquet", f"{BUILD}/{FINDINGS}")
    paths = [*out.glob("kept/*"), *out.glob("dropped/*"), *(out / name for name in names)]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}
