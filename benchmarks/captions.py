"""A table of links as large as CC12M, made by recombining real captions: `url<TAB>caption`, no header.

    python benchmarks/captions.py OUT.tsv [--rows 12400000] [--source FILE ...] [--seed 0]

Without `--source` the captions are the miniature world's, so that it runs anywhere. Each row is a function of the sources, the
seed and its number alone: the same call writes the same bytes, and the first rows of a long table are those of a short one.

A caption is a chain of pairs: the first words of one caption of the source, then the last words of another one of the same
file, both cut anywhere, so that every word of the source stands in it with the same chance.

Natural: the words and how often they occur, how they are written (case, punctuation, numbers, other languages, the source's own
dirt), and what follows what within a piece. Set by hand: the number of words, `<PERSON>` in a quarter of the rows, the share of
copies (a few captions are copied often, most never), of markup, e-mail addresses and missing URLs, and hosts by Zipf's law.
Coined words, half of one word with half of another, keep the vocabulary growing with the table, as names and misspellings do.
Not natural: grammar breaks off at the seams, which makes a tagger's work harder rather than easier; two languages may meet in a
caption; and the same pieces come back again and again, though they compress as real text does (2.1x with zstd).
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from filtering import InputError
from filtering.captions.reader import SourceConfig, read_links
from filtering.captions.text import PERSON_TOKEN
from miniature.captions import caption
from miniature.concepts import CONCEPTS
from miniature.junk import SHARES, junk_caption
from miniature.scenes import Depicted

BLOCK_ROWS = 1 << 15
MINIATURE_CAPTIONS = 20_000

WORDS = 20.0
"""Mean number of words: what CC12M's paper says of its captions."""
MAX_PAIRS = 12
MAX_SOURCE_WORDS = 100
"""Words of a source's caption that are used: every beginning and end of it is held in memory."""
FEWEST_WORDS = 6
"""A pair with fewer words gets a second one, or many rows would be alike by chance."""
WHOLE = 0.2
"""Share of rows whose pairs are two whole captions each."""
PERSON = 0.25
COINED = 0.2
COPIES, NEAR_COPIES = 0.03, 0.03
"""Shares of rows with an earlier row's caption: to the letter, and with a small change."""
DIRTY = 0.015
NO_URL = 0.001
HOSTS = 200_000
FOLDERS = pa.array(
    [f"{name}/{year}/{month:02}" for name in ("uploads", "img", "i") for year in range(2008, 2021) for month in range(1, 13)]
)
SEAMS = pa.array([None, None, "-", ",", "|", "."])
PERSONS = pa.array([PERSON_TOKEN])

Numbers = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Captions:
    """The pieces of the sources' captions, and which row follows from which number. `files` holds the captions of each file."""

    def __init__(self, files: Sequence[Sequence[str]], seed: int) -> None:
        self.seed = seed
        captions = [text.split()[:MAX_SOURCE_WORDS] for file in files for text in file]
        words = [word for caption in captions for word in caption]
        self.length = np.array([len(caption) for caption in captions])
        self.first = np.cumsum(self.length) - self.length
        self.pieces = {
            "head": pa.array([" ".join(caption[:end]) for caption in captions for end in range(1, len(caption) + 1)]),
            "tail": pa.array([" ".join(caption[-end:]) for caption in captions for end in range(1, len(caption) + 1)]),
        }
        self.piece_words = np.array([end for caption in captions for end in range(1, len(caption) + 1)])
        sizes = [len(file) for file in files]
        self.file_size, self.file_start = np.repeat(sizes, sizes), np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.words = pa.array(words)
        self.openings = pa.array([word[: (len(word) + 1) // 2] for word in words])
        self.endings = pa.array([word[len(word) // 2 :] for word in words])
        plain = [word for word in words if word.isascii() and word.isalpha() and word.islower()] or ["photo"]
        rng = Random(f"{seed}/hosts")
        self.hosts = pa.array([f"{rng.choice(plain)}{rng.choice(plain)}{rank}.example" for rank in range(HOSTS)])
        self.slugs = pa.array(["-".join(rng.choices(plain, k=5)) for _ in range(len(captions))])
        pair = float(self.length.mean()) * (1 + WHOLE) + 1 - WHOLE
        seam = 1 - SEAMS.null_count / len(SEAMS)
        self.last = min((pair + seam) / (WORDS - PERSON - COINED + seam), 0.99)
        """Chance that a pair is the last one of its caption."""

    def table(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop`: url, caption."""
        rows = np.arange(start, stop, dtype=np.uint64)
        copy, near = self.copies(rows)
        numbers = rows.copy()
        numbers[copy | near] = self.originals(rows[copy | near])
        captions = self.captions(numbers)
        dirty = ~copy & (self.draw(rows, "dirty") < DIRTY)
        for chosen, change in ((near, self.changed), (dirty, self.soiled)):
            captions = pc.replace_with_mask(captions, chosen, change(captions.filter(chosen), rows[chosen]))
        urls = pc.if_else(self.draw(rows, "no URL") < NO_URL, "", self.urls(rows))
        return pa.table({"url": urls, "caption": captions})

    def captions(self, numbers: Numbers) -> pa.Array:
        """The captions with these numbers, before any is changed or soiled."""
        pairs = 1 + (np.log1p(-self.draw(numbers, "pairs")) / math.log1p(-self.last)).astype(np.int64)
        whole = self.draw(numbers, "whole") < WHOLE
        file = (self.draw(numbers, "file") * len(self.length)).astype(np.int64)
        parts = [self.person(numbers, "opening")]
        for level in range(MAX_PAIRS):
            head, tail = (self.cut(numbers, f"{side} {level}", file, whole) for side in ("head", "tail"))
            if level == 0:
                few = self.piece_words[head] + self.piece_words[tail] < FEWEST_WORDS
                pairs = np.where(few, np.maximum(pairs, 2), pairs)
                middle = [self.person(numbers, "middle"), self.coined(numbers)]
            else:
                middle = []
                parts.append(self.choose(SEAMS, numbers, f"seam {level}", pairs > level))
            absent = pairs <= level
            parts += [
                self.pieces["head"].take(pa.array(head, mask=absent)),
                *middle,
                self.pieces["tail"].take(pa.array(tail, mask=absent)),
            ]
        return pc.binary_join_element_wise(*parts, " ", null_handling="skip")

    def cut(self, numbers: Numbers, name: str, file: Integers, whole: Mask) -> Integers:
        """Which piece of some caption of the file that caption `file` is in."""
        source = self.file_start[file] + (self.draw(numbers, name) * self.file_size[file]).astype(np.int64)
        length = self.length[source]
        words = np.where(whole, length, 1 + (self.draw(numbers, f"words of {name}") * length).astype(np.int64))
        return self.first[source] + words - 1

    def person(self, numbers: Numbers, where: str) -> pa.Array:
        """The person token in half as many rows as have it somewhere; null in the others."""
        return self.choose(PERSONS, numbers, "person", self.draw(numbers, f"person, {where}") < PERSON / 2)

    def coined(self, numbers: Numbers) -> pa.Array:
        """A word that no source has; null in most rows."""
        some = self.draw(numbers, "coined") < COINED
        halves = (self.choose(self.openings, numbers, "coined 1", some), self.choose(self.endings, numbers, "coined 2", some))
        return pc.binary_join_element_wise(*halves, "")

    def copies(self, rows: Numbers) -> tuple[Mask, Mask]:
        """Which rows have an earlier one's caption, and which have it with a small change."""
        kind = np.where(rows > 0, self.draw(rows, "kind"), 1.0)
        return kind < COPIES, (kind >= COPIES) & (kind < COPIES + NEAR_COPIES)

    def originals(self, rows: Numbers) -> Numbers:
        """An earlier row for each, no copy itself; the earliest are by far the likeliest."""
        chosen = (self.draw(rows, "original") ** 3 * rows).astype(np.uint64)
        while (copied := np.logical_or(*self.copies(chosen))).any():
            chosen = np.where(copied, chosen - np.uint64(1), chosen)
        return chosen

    def changed(self, captions: pa.Array, rows: Numbers) -> pa.Array:
        """Each caption with one word more or less, a full stop, or other capitals."""
        kinds = (
            pc.binary_join_element_wise(captions, self.choose(self.words, rows, "word more"), " "),
            pc.replace_substring_regex(captions, r"\s\S+$", ""),
            pc.binary_join_element_wise(captions, ".", " "),
            pc.utf8_title(captions),
        )
        return pc.choose((self.draw(rows, "change") * len(kinds)).astype(np.int64), *kinds)

    def soiled(self, captions: pa.Array, rows: Numbers) -> pa.Array:
        """Each caption with markup, an e-mail address or escaped characters."""
        hosts = self.choose(self.hosts, rows, "soil")
        kinds = (
            pc.binary_join_element_wise("<a href='http://", hosts, "'>", captions, "</a>", ""),
            pc.binary_join_element_wise(captions, " info@", hosts, ""),
            pc.binary_join_element_wise("&quot;", captions, "&quot;&nbsp;&amp; more", ""),
        )
        return pc.choose((self.draw(rows, "dirt") * len(kinds)).astype(np.int64), *kinds)

    def urls(self, rows: Numbers) -> pa.Array:
        """An address for each row: no two are the same, and no real host has one."""
        hosts = self.hosts.take(pa.array((HOSTS ** self.draw(rows, "host")).astype(np.int64) - 1))
        folders, slugs = self.choose(FOLDERS, rows, "folder"), self.choose(self.slugs, rows, "slug")
        return pc.binary_join_element_wise(
            "https://", hosts, "/", folders, "/", slugs, "-", hexadecimal(mixed(rows)), ".jpg", ""
        )

    def draw(self, numbers: Numbers, name: str) -> Floats:
        """A uniform draw from [0, 1) for each number; every name is a die of its own."""
        die = int.from_bytes(sha256(f"{self.seed}/{name}".encode()).digest()[:8], "big")
        return (mixed(mixed(numbers) ^ np.uint64(die)) >> np.uint64(11)) * 2.0**-53

    def choose(self, values: pa.Array, numbers: Numbers, name: str, among: Mask | None = None) -> pa.Array:
        """One of `values` for each number; null where `among` is false."""
        chosen = (self.draw(numbers, name) * len(values)).astype(np.int64)
        return values.take(pa.array(chosen, mask=None if among is None else ~among))


def mixed(numbers: Numbers) -> Numbers:
    """Each number scrambled, no two to the same (the finisher of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def hexadecimal(numbers: Numbers) -> pa.Array:
    """Each number as 16 hexadecimal digits."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    ends = np.arange(0, len(digits) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(ends), pa.py_buffer(digits))


def real_captions(file: str) -> list[str]:
    """The captions of a file that the filter's reader reads."""
    return [text for table in read_links(SourceConfig(path=file)) for text in table["caption"].to_pylist() if text]


def miniature_captions(seed: int) -> list[str]:
    """Captions as the miniature world has them, the junk among them."""
    rng = Random(f"{seed}/captions")
    kinds = [kind for kind in SHARES if kind not in ("duplicate", "mirror")]
    texts = [junk_caption(rng, rng.choice(kinds)) for _ in range(MINIATURE_CAPTIONS // 5)]
    while len(texts) < MINIATURE_CAPTIONS:
        concepts = rng.sample(range(len(CONCEPTS)), 4)
        shown = [Depicted(one, 0.2, rng.choice((1, 1, 2, 3)), rng.choice(("red", "blue", "green", None))) for one in concepts]
        texts.append(caption(rng, shown)[0])
    return texts


def write_links(out: Path, rows: int, captions: Captions) -> pa.Table:
    """Write the table block by block; returns its first block."""
    with out.open("wb") as file:
        for start in range(0, rows, BLOCK_ROWS):
            table = captions.table(start, min(start + BLOCK_ROWS, rows))
            lines = pc.binary_join_element_wise(table["url"].chunk(0), table["caption"].chunk(0), "\t")
            lines = pc.binary_join_element_wise(lines, "\n", "")
            file.write(lines.buffers()[2])
            if start == 0:
                first = table
    return first


def describe(table: pa.Table) -> None:
    """Print what the rows are like."""
    captions = table["caption"]
    words = [len(text.split()) for text in captions.to_pylist()]
    low, middle, high = np.percentile(words, (5, 50, 95))
    caption_bytes, url_bytes = (pc.mean(pc.binary_length(table[name])).as_py() for name in ("caption", "url"))
    persons = np.mean(pc.match_substring(captions, PERSON_TOKEN))
    print(f"the first {len(words)} rows: {np.mean(words):.1f} words a caption (standard deviation {np.std(words):.1f})")
    print(f"  percentiles 5, 50 and 95: {low:.0f}, {middle:.0f} and {high:.0f} words")
    print(f"  {caption_bytes:.0f} bytes a caption and {url_bytes:.0f} a URL; {persons:.0%} of the captions hold {PERSON_TOKEN}")
    print(f"  {1 - pc.count_distinct(captions).as_py() / len(words):.1%} are exact copies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=12_400_000)
    parser.add_argument("--source", nargs="+", default=[], help="files of links and captions; default: the miniature world")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()
    try:
        files = [real_captions(file) for file in args.source] or [miniature_captions(args.seed)]
    except InputError as error:
        sys.exit(str(error))
    captions = Captions(files, args.seed)
    ready = time.perf_counter()
    first = write_links(args.out, args.rows, captions)
    seconds = time.perf_counter() - ready
    print(f"{len(captions.length)} captions of {len(files)} files cut in {ready - began:.0f} s")
    print(f"{args.rows} rows, {args.out.stat().st_size / 1e9:.2f} GB in {seconds:.0f} s: {args.rows / seconds:.0f} rows/s")
    describe(first)


if __name__ == "__main__":
    main()
