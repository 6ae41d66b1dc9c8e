"""Links in, the filtered corpus out: partition, tag, count, choose the vocabulary, split.

    partition   the source, streamed into shards by the hash of the caption: duplicates meet, and neither the order of the
                input nor the block size matters
    pass one    rules, then the nouns of the captions that are left, written beside them; counts per entity
    vocabulary  counts of all shards added up; the K most frequent entities are kept
    pass two    captions that mention none of them are dropped; kept and dropped rows are written

Both passes are `ShardWork` and run wherever a `Runner` runs them; each finished shard has a marker and is not done again.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering import report
from filtering.entities import EntityFinder, kept_entities, vocabulary
from filtering.lexicon import lexicon_digest, load_lexicon
from filtering.reader import SourceConfig, read_links, source_files
from filtering.rules import DEFAULT_RULES, RuleConfig
from filtering.schema import CORPUS, DROPPED, LINKS
from filtering.stage import (
    InputError,
    Marker,
    Rule,
    Runner,
    digest_of,
    digest_of_file,
    digest_of_markers,
    mark,
    run_local,
    split,
    sum_counts,
    write_json,
    write_table,
)
from filtering.tagger import load_tagger
from filtering.text import normalised

VERSION = 1
"""Raise it when the same config gives other rows: it is part of every fingerprint."""

BUILD = "_build"
BLOCK_ROWS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """How links become a corpus."""

    source: SourceConfig = field(default_factory=SourceConfig)
    """Where the links are and which columns hold them."""
    rules: tuple[RuleConfig, ...] = DEFAULT_RULES
    """Caption rules in their order; the first that refuses a row is its reason."""
    top_k: int = 100
    """Number of entities to keep: the most frequent visual nouns of the corpus."""
    min_count: int = 2
    """Fewest captions that must mention an entity for it to be kept."""
    stop: tuple[str, ...] = ()
    """Names that are never entities, beside the shipped stop list."""
    tagger: str = ""
    """spaCy model that tells nouns, for instance en_core_web_sm; "" is the small tagger that ships with this package."""
    shards: int = 16
    """Number of corpus shards: units of work and of resuming (up to about 100,000 links each is comfortable)."""

    def __post_init__(self) -> None:
        for key in ("top_k", "min_count", "shards"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}: must be at least 1, not {getattr(self, key)}")


def build_corpus(config: FilterConfig, out: Path, *, run: Runner = run_local) -> dict[str, Any]:
    """Build the corpus of `config` in the folder `out`; what an earlier call finished is not done again.

    `out` gets `kept/*.parquet` (schema `CORPUS`), `dropped/*.parquet` (`DROPPED`), `entities.parquet` (`ENTITIES`),
    `report.json` and `report.png`. The folder `_build` holds what resuming needs.

    Returns:
        {"links": rows read, "kept": rows kept, "dropped": {reason: rows}, "entities": names kept, "digest": of all tables}.

    Raises:
        InputError: a source that cannot be read, no such tagger, or no entity that is frequent enough.
    """
    build = out / BUILD
    model = load_tagger(config.tagger).meta  # a wrong name should be told here, not by a worker
    links = partition(config.source, build / "links", config.shards)
    rules = [asdict(rule) for rule in config.rules]
    reading = digest_of([VERSION, rules, config.stop, model["name"], model["version"], lexicon_digest()])
    tagged = run(partial(TagWork, config.rules, config.stop, config.tagger), links, build, fingerprint=reading, label="tag")
    entities = vocabulary(add_tallies(build, tagged), config.top_k, config.min_count)
    kept = kept_entities(entities)
    if not kept:
        raise InputError(
            f"filter.min_count: of the captions that passed the rules no {config.min_count} mention the same entity; "
            f"lower it, or see {build / 'tagged'} for the reasons"
        )
    sources = [build / "tagged" / f"{marker.shard}.parquet" for marker in tagged]
    markers = run(partial(SplitWork, kept), sources, out, fingerprint=digest_of([VERSION, sorted(kept)]), label="split")
    _remove_strangers(out, markers)
    write_table(out / "entities.parquet", entities)
    counts = sum_counts(markers)
    reasons = [*(rule.name for rule in config.rules), NoEntity.name, RareEntity.name]
    summary = {
        "links": sum(counts.values()),
        "kept": counts["kept"],
        "dropped": {reason: counts[reason] for reason in dict.fromkeys(reasons) if counts.get(reason)},
        "entities": len(kept),
        "digest": digest_of([digest_of_markers(markers), digest_of_file(out / "entities.parquet")]),
    }
    report.write(out, summary)
    return summary


# ---- partition


def partition(source: SourceConfig, folder: Path, shards: int) -> list[Path]:
    """Stream the source into `shards` parquet files in `folder`, rows with the same caption in the same one, sorted by key."""
    paths = [folder / f"{shard:05d}.parquet" for shard in range(shards)]
    settings = {key: value for key, value in asdict(source).items() if key != "path"}
    fingerprint = digest_of([VERSION, settings, shards, [digest_of_file(path) for path in source_files(source)]])
    marker = folder / "partition.done.json"
    if marker.exists() and json.loads(marker.read_text()) == fingerprint and all(path.exists() for path in paths):
        return paths
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as open_files:
        spools = [path.with_suffix(".spool") for path in paths]
        writers = [open_files.enter_context(pq.ParquetWriter(spool, LINKS)) for spool in spools]
        for table in _blocks(read_links(source)):
            shard_of = pa.array([_shard(caption, shards) for caption in table["caption"].to_pylist()], pa.int32())
            for shard, writer in enumerate(writers):
                writer.write_table(table.filter(pc.equal(shard_of, shard)))
    for path, spool in zip(paths, spools, strict=True):
        write_table(path, pq.read_table(spool).sort_by("key"))
        spool.unlink()
    write_json(marker, fingerprint)
    return paths


def _blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in blocks of about `BLOCK_ROWS`, so that a spool has few row groups."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.num_rows for one in waiting) >= BLOCK_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _shard(caption: str, shards: int) -> int:
    return int.from_bytes(sha256(normalised(caption).encode()).digest()[:8], "big") % shards


# ---- pass one


class TagWork:
    """Pass one over a shard of links: rules, then the entities of what is left, and in how many captions each occurs."""

    def __init__(self, rules: Sequence[Rule], stop: tuple[str, ...], tagger: str) -> None:
        self._rules = rules
        self._find = EntityFinder(load_tagger(tagger), load_lexicon(stop))

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        left = table
        parts = []
        for rule in self._rules:  # one at a time: a duplicate of a row that was refused is no duplicate
            left, refused = split(mark(left, [rule]))
            parts.append(refused.add_column(len(LINKS), CORPUS.field("entities"), _lists([[]] * refused.num_rows)))
        found = self._find(left["caption"].to_pylist())
        left = left.append_column(CORPUS.field("entities"), _lists(found))
        parts.append(left.append_column(DROPPED.field("drop_reason"), pa.nulls(left.num_rows, pa.string())))
        write_table(scratch / "tagged" / f"{scratch.name}.parquet", pa.concat_tables(parts).sort_by("key"))
        tally = Counter(name for names in found for name in names)
        write_json(scratch / "tally" / f"{scratch.name}.json", dict(sorted(tally.items())))
        return {"links": table.num_rows, "tagged": left.num_rows}


def add_tallies(build: Path, tagged: Iterable[Marker]) -> Counter[str]:
    """Captions per entity over all shards of pass one."""
    total: Counter[str] = Counter()
    for marker in tagged:
        total.update(json.loads((build / "tally" / f"{marker.shard}.json").read_text()))
    return total


# ---- pass two


@dataclass(frozen=True)
class NoEntity:
    """Refuses captions that mention nothing one could see."""

    name: ClassVar[str] = "no_entity"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pc.greater(pc.list_value_length(table["entities"]), 0)


@dataclass(frozen=True)
class RareEntity:
    """Refuses captions that mention none of the kept entities."""

    kept: frozenset[str]
    name: ClassVar[str] = "rare_entity"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pa.array([not self.kept.isdisjoint(names) for names in table["entities"].to_pylist()], pa.bool_())


class SplitWork:
    """Pass two over a tagged shard: kept rows with their kept entities; dropped rows with all entities and the reason."""

    def __init__(self, kept: frozenset[str]) -> None:
        self._kept = kept

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        passed, refused = split(table)
        kept, without = split(mark(passed, [NoEntity(), RareEntity(self._kept)]))
        names = [[name for name in row if name in self._kept] for row in kept["entities"].to_pylist()]
        kept = kept.set_column(kept.column_names.index("entities"), CORPUS.field("entities"), _lists(names))
        dropped = pa.concat_tables([refused, without]).sort_by("key")
        write_table(scratch / "kept" / f"{scratch.name}.parquet", kept.cast(CORPUS))
        write_table(scratch / "dropped" / f"{scratch.name}.parquet", dropped.cast(DROPPED))
        return {"kept": kept.num_rows} | dict(Counter(dropped["drop_reason"].to_pylist()))


def _lists(rows: Sequence[Sequence[str]]) -> pa.Array:
    return pa.array(rows, CORPUS.field("entities").type)


def _remove_strangers(out: Path, markers: Iterable[Marker]) -> None:
    """Delete shards that an earlier config with more of them left behind, and what a killed run was about to rename."""
    ours = {out / file for marker in markers for file in marker.files}
    for path in [*out.glob("kept/*.parquet"), *out.glob("dropped/*.parquet"), *out.rglob(".*.tmp")]:
        if path not in ours:
            path.unlink()
