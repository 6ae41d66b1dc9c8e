"""WebDataset tars: a sample is a row, or one for each of its captions."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from filtering import InputError
from filtering.captions.formats.source import Part, SourceConfig, batches
from filtering.kept_columns import plain_array
from filtering.samples import IMAGE_KINDS, MAX_TEXT, TEXT_KINDS, SampleRow, metadata_of, sample_rows
from filtering.schema import HAS_IMAGE, LINKS, SAMPLE
from filtering.sources import Kind, size_of
from filtering.tar_samples import open_tar

SAMPLE_BYTES = 1 << 16  # guess of what a sample takes; for progress alone


def parts(path: str, kind: Kind, source: SourceConfig) -> Iterator[Part]:
    """A tar is one part."""
    if "::" in path:
        raise InputError(f'filter.source.path: "::" in the path of a tar parts it from the names of samples; rename {path}')
    yield Part(path=path, kind=kind, keep=list(source.keep_columns), rows_hint=max(1, size_of(path) // SAMPLE_BYTES))


class _Row(NamedTuple):
    row: SampleRow
    has_image: bool
    kept: list[Any]
    """The sample's fields to keep, as its .json has them."""


def tables(part: Part) -> Iterator[pa.Table]:
    """The rows of a tar: `LINKS`, `SAMPLE`, `HAS_IMAGE` and the columns to keep."""
    for batch in batches(_rows(part)):
        rows, has_image, kept = zip(*batch, strict=True)
        arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        arrays += [
            pa.array(has_image, pa.bool_()),
            *(plain_array([values[i] for values in kept]) for i in range(len(part.keep))),
        ]
        yield pa.Table.from_arrays(arrays, names=[*LINKS.names, SAMPLE.name, HAS_IMAGE.name, *part.keep])


def _rows(part: Part) -> Iterator[_Row]:
    with open_tar(part.path) as samples:
        for name, files in samples:
            texts: dict[str, bytes] = {}
            has_image = False
            for file in files:
                if file.kind in TEXT_KINDS:
                    texts[file.kind] = file.read(MAX_TEXT)
                has_image = has_image or file.kind in IMAGE_KINDS
            told = metadata_of(texts) if part.keep else {}
            kept = [told.get(column) for column in part.keep]
            for row in sample_rows(part.path, name, texts):
                yield _Row(row, has_image, kept)
