"""Where images lie: rows of the corpus, statuses of the download, samples of tars."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.files import read_table
from filtering.images.image_config import ImageConfig
from filtering.link_set import LinkSet
from filtering.reports.lookalikes import DISTANCE
from filtering.url import id_of
from owseg import InputError
from pipelines.lineages.answer import CorpusRow, Downloaded, Place
from storage.copies import fetched, names_in, release, shown
from storage.indexes import IndexFile, read
from storage.tars import BLOCK
from storage.understood import understood

_STATUS = ("key", "url", "status", "error_message", "caption_keys", "sha256", "phash")
NO_HASH = 0
"""The perceptual hash of plain pictures, which tells nothing."""


def corpus_rows(corpus: Path, links: LinkSet) -> list[CorpusRow]:
    """The rows, kept and dropped, of some links and keys."""
    found = []
    for folder, columns in (("kept", ["key", "url", "caption"]), ("dropped", ["key", "url", "caption", "drop_reason"])):
        for name, table in _tables(corpus / folder, columns, links.among):
            for row in table.to_pylist():
                told = {key: row[key] or "" for key in ("key", "url", "caption")}
                found.append(CorpusRow(**told, status=row.get("drop_reason") or "kept", file=f"corpus/{folder}/{name}"))
    return found


def downloaded(shards: Path, links: LinkSet) -> list[Downloaded]:
    """What the download has on some links and keys, those of further captions among them."""

    def wanted(table: pa.Table) -> pa.BooleanArray:
        return pc.or_(links.among(table), _of_captions(table["caption_keys"], links))

    return [_told(row, name) for name, table in _tables(shards, _STATUS, wanted) for row in table.to_pylist()]


def downloaded_like(shards: Path, image: Path, config: ImageConfig) -> list[Downloaded]:
    """What the download has of an image file: the same file, byte for byte, or pictures that look like it.

    Raises InputError where the file holds no image.
    """
    from filtering.images.resize import Resize  # OpenCV is of use here alone

    content = image.read_bytes()
    resized = Resize(config)(content)
    if resized.phash is None:
        raise InputError(f"{image}: {resized.status.replace('_', ' ')}; give an image, or a text file of links and keys")
    digest, looks = hashlib.sha256(content).hexdigest(), int(resized.phash, 16)

    def distances(table: pa.Table) -> np.ndarray:
        hashes = np.array([int(one, 16) if one else NO_HASH for one in table["phash"].to_pylist()], np.uint64)
        apart: np.ndarray = np.bitwise_count(hashes ^ np.uint64(looks)).astype(int)
        return np.where(hashes == NO_HASH, 65, apart) if looks != NO_HASH else np.full(len(hashes), 65)

    def wanted(table: pa.Table) -> pa.BooleanArray:
        same = pc.fill_null(pc.equal(table["sha256"], digest), False).to_numpy(zero_copy_only=False)
        return pa.array(same | (distances(table) <= DISTANCE))

    found = []
    for name, table in _tables(shards, _STATUS, wanted):
        for row, apart in zip(table.to_pylist(), distances(table).tolist(), strict=True):
            same = row["sha256"] == digest
            found.append(_told(row, name, "the same file" if same else f"looks like it ({apart} of 64 bits differ)"))
    return found


def places(indexes: Sequence[IndexFile], keys: Iterable[str], tars: Iterable[str] | None = None) -> list[Place]:
    """Where samples of these keys lie; in tars of these names alone, if any are given."""
    wanted, inside = frozenset(keys), None if tars is None else frozenset(tars)
    found = []
    for index in indexes if wanted else ():
        if inside is not None and index.tar.name not in inside:
            continue
        content = read(index)
        for number in range(index.header.samples):
            if (key := content.key(number)) in wanted:
                record = content.records[number]
                found.append(
                    Place(
                        tar=shown(index.tar),
                        key=key,
                        sample=number + 1,
                        samples=index.header.samples,
                        offset=BLOCK * int(record["image"]),
                        bytes=int(record["image_bytes"]),
                    )
                )
    return found


def keys_by_url(indexes: Sequence[IndexFile], links: LinkSet) -> dict[str, str]:
    """The link of each sample whose JSON names one of these links as its "url", by key."""
    found = {}
    for index in indexes if any("://" in name for name in links.names) else ():
        content, was_here = read(index), index.tar.is_file()
        with fetched(index.tar).open("rb") as tar:
            for number, record in enumerate(content.records):
                tar.seek(BLOCK * int(record["about"]))
                url = _url_of(tar.read(int(record["about_bytes"])))
                if url and url in links:
                    found[content.key(number)] = url
        if not was_here:
            release(index.tar)
    return found


def concerns(name: str, keys: Iterable[str], urls: Iterable[str]) -> bool:
    """Whether a link or key is that of something with these keys and links."""
    return name in keys or id_of(name, name) in {id_of(url, url) for url in urls}


def _url_of(about: bytes) -> str:
    try:
        url = json.loads(about)["url"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return url if isinstance(url, str) else ""


def _tables(
    folder: Path, columns: Sequence[str], wanted: Callable[[pa.Table], pa.BooleanArray]
) -> Iterator[tuple[str, pa.Table]]:
    """The wanted rows of each table directly in a folder that has any, with the table's name.

    Columns that tables of older versions lack are null. Raises InputError that names a table that cannot be read.
    """
    for name in names_in(folder):
        if name.endswith(".parquet"):
            with understood(folder / name, "start the run again, it makes it anew", also=(pa.ArrowException, OSError)):
                file = fetched(folder / name)
                there = pq.read_schema(file).names
                table = read_table(file, [column for column in columns if column in there]).combine_chunks()
                kinds = {column: pa.list_(pa.string()) if column == "caption_keys" else pa.string() for column in columns}
                for column, kind in kinds.items():
                    if column not in table.column_names:
                        table = table.append_column(column, pa.nulls(len(table), kind))
                table = table.select(columns).cast(pa.schema([*kinds.items()]))
                rows = table.filter(wanted(table))
            if rows.num_rows:
                yield name, rows


def _of_captions(column: pa.ChunkedArray, links: LinkSet) -> pa.BooleanArray:
    """Which rows have a further caption whose key is named."""
    lists = column.combine_chunks()
    named = pc.is_in(pc.list_flatten(lists).cast(pa.string()), pa.array(sorted(links.ids), pa.string()))
    rows = pc.list_parent_indices(lists).filter(named).to_numpy()
    found = np.zeros(len(lists), bool)
    found[rows] = True
    return pa.array(found)


def _told(row: dict[str, object], name: str, likeness: str = "") -> Downloaded:
    keys = row["caption_keys"]
    return Downloaded(
        key=str(row["key"]),
        keys=[str(key) for key in keys] if isinstance(keys, list) else [str(row["key"])],
        url=str(row["url"] or ""),
        status=str(row["status"]),
        message=str(row["error_message"] or ""),
        file=f"shards/{name}",
        likeness=likeness,
    )
