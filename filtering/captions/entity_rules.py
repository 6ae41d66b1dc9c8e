"""The rules that judge captions by their entities. The settings of a corpus make them, not the list `filter.rules`.

`NearDuplicate` and `Balanced` live beside the search and the settings that they come from.
"""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from filtering.captions.balance import Balanced
from filtering.captions.near_duplicates import NearDuplicate


@dataclass(frozen=True)
class NoEntity:
    """Refuses captions that mention nothing one could see."""

    name: ClassVar[str] = "no_entity"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pc.greater(pc.list_value_length(table["entities"]), 0)


@dataclass(frozen=True)
class RareEntity:
    """Refuses captions that mention visible things, but none of the vocabulary."""

    kept: frozenset[str]
    name: ClassVar[str] = "rare_entity"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pa.array([not self.kept.isdisjoint(names) for names in table["entities"].to_pylist()], pa.bool_())


ENTITY_RULES = (NoEntity, RareEntity, NearDuplicate, Balanced)
"""In the order in which they judge; a rule's first docstring line is its explanation in the report, as with `RuleConfig`."""
