"""Rows of images that somebody asked to be left out."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from filtering.link_set import LinkSet


@dataclass(frozen=True)
class Forgotten:
    """Refuses images that somebody asked to be left out (`lineage --forget`)."""

    links: LinkSet
    name: ClassVar[str] = "forgotten"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pc.invert(self.links.among(table))
