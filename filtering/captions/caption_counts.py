"""What the caption rules want to know about captions in numbers: words, letters, known words.

The numbers are one column, `COUNTS`, that is made once and stays with its rows.
"""

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filtering.captions.lexicon import is_english, is_foreign, is_small
from filtering.captions.words import words_of

Counts = np.ndarray[Any, np.dtype[np.int32]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

COUNTS = pa.field(
    "counts",
    pa.struct(
        [
            ("words", pa.int32()),  # words of the caption
            ("small", pa.int32()),  # English function words among them ("a", "of")
            ("distinct", pa.int32()),  # different ones among the others
            ("spelt", pa.int32()),  # words of two or more letters and apostrophes
            ("known", pa.int32()),  # those that an English dictionary knows
            ("foreign", pa.int32()),  # function words of other languages ("der", "les")
            ("capitals", pa.int32()),  # words that open with a capital
            ("visible", pa.int32()),  # characters that are not white space
            ("letters", pa.int32()),  # letters of any script
            ("latin", pa.int32()),  # a to z among them
        ]
    ),
)
"""What the rules want to know about a caption, in numbers."""

BATCH_ROWS = 1 << 13
"""Captions that are counted together: memory stays flat."""


def with_counts(table: pa.Table) -> pa.Table:
    """`table` with the column `COUNTS`. Rules count anew where it is missing: the result is the same, only later."""
    captions = table["caption"]
    batches = [_count(captions.slice(start, BATCH_ROWS)) for start in range(0, len(captions), BATCH_ROWS)]
    return table.append_column(COUNTS, pa.chunked_array(batches, COUNTS.type))


def counts_of(table: pa.Table) -> dict[str, Counts]:
    """The numbers of `COUNTS` by name, int32 [rows] each."""
    column = (table if COUNTS.name in table.column_names else with_counts(table))[COUNTS.name]
    return {field.name: pc.struct_field(column, field.name).to_numpy() for field in COUNTS.type}


def _count(captions: pa.ChunkedArray) -> pa.StructArray:
    found = words_of(captions)
    lengths = pc.list_value_length(found).to_numpy()
    ends = np.cumsum(lengths)
    coded = found.flatten().dictionary_encode()
    of_word = coded.indices.to_numpy()
    small, spelt, known, foreign = np.array([_kinds(word) for word in coded.dictionary.to_pylist()], bool).reshape(-1, 4).T
    sorted_words = np.sort(np.repeat(np.arange(len(found)), lengths) << 32 | of_word)  # each row's stay in its place
    is_new = (np.diff(sorted_words, prepend=-1) != 0) & ~small[sorted_words & 0xFFFFFFFF]

    texts = [caption or "" for caption in captions.to_pylist()]
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    last = np.cumsum([len(text) for text in texts], dtype=np.int64)
    letter, space, capital = _letters_spaces_capitals()
    letters = letter[characters]
    opening = letters.copy()
    opening[1:] &= ~letters[:-1]
    opening[last[:-1][last[:-1] < len(letters)]] |= letters[last[:-1][last[:-1] < len(letters)]]  # a caption's first letter
    columns = {
        "words": lengths,
        "small": _sums(small[of_word], ends),
        "distinct": _sums(is_new, ends),
        "spelt": _sums(spelt[of_word], ends),
        "known": _sums(known[of_word], ends),
        "foreign": _sums(foreign[of_word], ends),
        "capitals": _sums(opening & capital[characters], last),
        "visible": _sums(~space[characters], last),
        "letters": _sums(letters, last),
        "latin": _sums(letters & (characters < 128), last),
    }
    return pa.StructArray.from_arrays(
        [pa.array(columns[field.name], field.type) for field in COUNTS.type], fields=list(COUNTS.type)
    )


def _sums(flags: Flags, ends: np.ndarray[Any, Any]) -> Counts:
    """How many flags are set in each run of `flags`; the runs follow one another and end before `ends`."""
    totals: Counts = np.cumsum(np.concatenate([[False], flags]), dtype=np.int32)
    sums: Counts = np.diff(totals[ends], prepend=np.int32(0))
    return sums


def _kinds(word: str) -> tuple[bool, bool, bool, bool]:
    """Whether a word is small, says anything about the language, speaks for English, speaks for another language."""
    stem = word.removesuffix("'s")
    spelt = len(stem) > 1 and (word.isalpha() or "'" in word)  # "a" is a word of many languages
    return is_small(word), spelt, spelt and is_english(stem), is_foreign(word)


@cache
def _letters_spaces_capitals() -> tuple[Flags, Flags, Flags]:
    """For every character of Unicode whether it is a letter, whether it is white space, whether it is a capital."""
    characters = list(map(chr, range(0x110000)))
    letters, spaces, capitals = (np.array(list(map(kind, characters))) for kind in (str.isalpha, str.isspace, str.isupper))
    return letters, spaces, capitals
