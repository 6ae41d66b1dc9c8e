"""Words of a column: what `filtering.captions.text` says of each, whatever the alphabet and however the column is cut."""

import random

import pyarrow as pa
import pytest

from filtering.captions.text import normalised, words
from filtering.captions.words import normalised_of, words_of

PIECES = [
    *"aBz09éßİ½狗🐕’'_-.,&<> \n\t\x1c\u00a0\u0345",
    "dog's",
    "men’s",
    "'cat'",
    "<PERSON>",
    "<PER",
    "SON>",
    "''",
    "new",
    "!!!",
]
DRAW = random.Random(0)
CAPTIONS = ["".join(DRAW.choices(PIECES, k=DRAW.randint(0, 12))) for _ in range(3000)]
ASCII = [caption for caption in CAPTIONS if caption.isascii()]
EDGES = ["a'", "'b", "", "c'd''e'f", "1", "'", "dog", "'s"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(CAPTIONS),
        pa.array(ASCII),
        pa.array(EDGES),
        pa.array(EDGES).slice(2, 5),
        pa.chunked_array([pa.array(EDGES), pa.array([], pa.string()), pa.array([None, "Élan's", None])]),
        pa.chunked_array([pa.array(CAPTIONS).filter(pa.array([at % 3 == 0 for at in range(len(CAPTIONS))]))]),
        pa.array([None, None], pa.string()),
        pa.chunked_array([], pa.string()),
    ],
)
def test_a_column_reads_as_its_captions(column: pa.ChunkedArray | pa.Array) -> None:
    captions = [caption or "" for caption in column.to_pylist()]
    assert words_of(column).to_pylist() == [words(caption) for caption in captions]
    assert normalised_of(column).to_pylist() == [normalised(caption) for caption in captions]
