"""The words of a whole column of captions: what `filtering.captions.text` says of one caption, many times as fast.

ASCII is read byte by byte with numpy; captions with other characters go through that module, which knows all of Unicode.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filtering.captions.text import PERSON_TOKEN, normalised, words

WORDS = pa.list_(pa.string())
"""Words of captions: lists of strings."""

_LOWER = np.array([ord(chr(code).lower()) for code in range(128)], np.uint8)
_ALPHANUMERIC = np.array([chr(code).isalnum() for code in range(128)])


def words_of(captions: pa.ChunkedArray | pa.Array) -> pa.ListArray:
    """`filtering.captions.text.words` of every caption; null reads as an empty one."""
    return _in_two(captions, lambda plain: _ascii_words(pc.replace_substring(plain, PERSON_TOKEN, " ")), words, WORDS)


def normalised_of(captions: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """`filtering.captions.text.normalised` of every caption; null reads as an empty one."""
    return _in_two(captions, _ascii_normalised, normalised, pa.string())


def _in_two(
    captions: pa.ChunkedArray | pa.Array,
    of_ascii: Callable[[pa.StringArray], pa.Array],
    of_text: Callable[[str], Any],
    type: pa.DataType,
) -> pa.Array:
    """`of_ascii` of the captions in ASCII and `of_text` of each other one, in the order of `captions`."""
    captions = pc.fill_null(captions, "")
    if isinstance(captions, pa.ChunkedArray):
        captions = captions.combine_chunks()
    plain = pc.string_is_ascii(captions)
    rest = captions.filter(pc.invert(plain))
    if not len(rest):
        return of_ascii(captions)
    found = pa.concat_arrays([of_ascii(captions.filter(plain)), pa.array(map(of_text, rest.to_pylist()), type)])
    return found.take(pa.array(np.argsort(np.argsort(~plain.to_numpy(zero_copy_only=False), kind="stable"), kind="stable")))


def _ascii_normalised(captions: pa.StringArray) -> pa.StringArray:
    found = pc.binary_join(_ascii_words(captions), " ")
    return pc.if_else(pc.equal(found, ""), captions, found)


def _ascii_words(captions: pa.StringArray) -> pa.ListArray:
    """Runs of letters and digits, and apostrophes between two of them, in lower case."""
    _, ends, text = captions.buffers()
    rows = np.frombuffer(ends, np.int32)[captions.offset : captions.offset + len(captions) + 1]
    data = np.frombuffer(text or b"", np.uint8)[rows[0] : rows[-1]]
    rows = rows - rows[0]

    part = _ALPHANUMERIC[data]
    at = np.flatnonzero(data == ord("'"))
    row = np.searchsorted(rows, at, side="right")
    at = at[(at > rows[row - 1]) & (at + 1 < rows[row])]
    part[at[part[at - 1] & part[at + 1]]] = True

    opens = part.copy()
    opens[1:] &= ~part[:-1]
    first = rows[:-1][rows[:-1] < rows[1:]]
    opens[first] = part[first]  # a word never goes on in the next row

    letters = _LOWER[data[part]]
    offsets = np.append(np.flatnonzero(opens[part]), len(letters)).astype(np.int32)
    found = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(letters))
    return pa.ListArray.from_arrays(np.searchsorted(np.flatnonzero(opens), rows).astype(np.int32), found)
