"""Some images, named by their links or keys: those that are looked for, and those that somebody asked to be left out."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filtering import InputError
from filtering.files import digest_of, write_text
from filtering.url import id_of, is_url

FORGOTTEN = "forgotten.txt"
"""In a run's folder: a link or a key on each line, of images that are in no later shard and no later batch."""

_USUAL = r"^https?://[a-z0-9-]+(\.[a-z0-9-]*[a-z][a-z0-9-]*)+/[A-Za-z0-9_~&=?,./-]*$"
"""For RE2: URLs that, without "/." in them, are written as they go on the wire."""
_HEAD = "# Links and keys of images that no later shard and no later batch has; pipelines/lineage.py --forget adds more."


@dataclass(frozen=True)
class LinkSet:
    """Links and keys; a link stands for all of its spellings."""

    names: tuple[str, ...] = ()
    """As they were given, each once."""
    ids: frozenset[str] = field(init=False)
    """Keys, and links as they go on the wire."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", frozenset(id_of(name, name) for name in self.names))

    def __bool__(self) -> bool:
        return bool(self.names)

    def __contains__(self, name: str) -> bool:
        return id_of(name, name) in self.ids

    @property
    def digest(self) -> str:
        """SHA-256 of what is named, in whatever order and spelling."""
        return digest_of(sorted(self.ids))

    def with_more(self, names: Iterable[str]) -> Self:
        """The same with further links and keys behind them."""
        by_id = {id_of(name, name): name for name in self.names}
        for name in names:
            by_id.setdefault(id_of(name, name), name)
        return type(self)(tuple(by_id.values()))

    def among(self, table: pa.Table) -> pa.BooleanArray:
        """Which rows of a table with the columns url and key are named, by either."""
        if not self or not table.num_rows:
            return pa.array(np.zeros(table.num_rows, bool))
        wanted = pa.array(sorted(self.ids), pa.string())
        urls, keys = (table[name].combine_chunks().cast(pa.string()) for name in ("url", "key"))
        found = pc.or_(pc.is_in(keys, wanted), pc.is_in(urls, wanted)).to_numpy(zero_copy_only=False).copy()
        usual = pc.and_(pc.match_substring_regex(urls, _USUAL), pc.invert(pc.match_substring(urls, "/.")))
        for row in np.flatnonzero(~pc.fill_null(usual, True).to_numpy(zero_copy_only=False)).tolist():
            found[row] |= id_of(urls[row].as_py(), "") in self.ids
        return pa.array(found)


def read_links(file: Path) -> LinkSet:
    """The links and keys in a file, one a line; empty lines and those that begin with # are none.

    Raises InputError where it cannot be read, names nothing, or a line is neither.
    """
    names = _names(file, _lines(file))
    if not names:
        raise InputError(f"{file}: names no link and no key; give one on each line")
    return LinkSet().with_more(names)


def forgotten_in(run_dir: Path) -> LinkSet:
    """What a run leaves out; nothing where nobody asked for it."""
    file = run_dir / FORGOTTEN
    return LinkSet().with_more(_names(file, _lines(file))) if file.is_file() else LinkSet()


def write_forgotten(run_dir: Path, links: LinkSet) -> None:
    """Write what a run leaves out, whole or not at all."""
    write_text(run_dir / FORGOTTEN, "\n".join([_HEAD, *links.names]) + "\n")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{file}: cannot be read ({reason}); give a text file with a link or a key on each line") from None


def _names(file: Path, lines: Iterable[str]) -> list[str]:
    names = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if re.search(r"[\s\x00-\x1f]", name) and not is_url(name):
            raise InputError(f"{file}: line {number} is neither a link nor a key: {name[:80]!r}; give one on each line")
        names.append(name)
    return names
