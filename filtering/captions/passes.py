"""The passes of a corpus build over its shards, each a `ShardWork`: mark, split, and for near-duplicates sign and confirm."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.captions.caption_counts import with_counts
from filtering.captions.index import write_index_part
from filtering.captions.lexicon import Lexicon, lexicon_digest, load_lexicon
from filtering.captions.matching import Matcher, tally
from filtering.captions.near_duplicates import NearDuplicate, NearDuplicates, confirm, sign
from filtering.captions.row_rules import ROW_RULES
from filtering.captions.rules import NoEntity, RareEntity
from filtering.captions.statistics import describe_shard
from filtering.captions.tagger import load_tagger, tagger_digest
from filtering.captions.vocabulary import FrequencyList, ListConfig, kept_entities
from filtering.files import digest_of, write_json, write_table
from filtering.partition import gather, write_block
from filtering.schema import CORPUS, DROPPED, HAS_IMAGE
from filtering.shards import Rule, mark, split
from storage.copies import fetched

BUILD = "_build"
"""The folder inside the corpus's own in which passes leave what others need."""
NEAR = "near"
"""In it the blocks of rows that nearly repeat another one."""


class Words:
    """What finding entities takes: the tagger, the lexicon with the list's own names, and the scanner."""

    def __init__(self, entities: ListConfig, stop: tuple[str, ...], tagger: str) -> None:
        own = [] if isinstance(entities, FrequencyList) else sorted(entities.names().items())  # which of these are kept
        self._settings = [asdict(entities), own, stop]
        self.nlp = load_tagger(tagger)
        self.lexicon: Lexicon = entities.lexicon(load_lexicon(stop))
        self.scan = entities.scanner(self.lexicon, self.nlp.tokenizer)
        self.find = entities.finder(self.nlp, self.lexicon)

    def fingerprint(self) -> str:
        """Changes with whatever changes the entities of a caption."""
        names = digest_of(sorted(self.lexicon.names.items()))
        return digest_of([self._settings, tagger_digest(self.nlp), lexicon_digest(), names])


MakeWords = Callable[[], Words]


# ---- mark


class MarkWork:
    """Rules about rows and captions, then the forms of what is left; of keys below a limit the tagger's answer too.

    Rows keep the order of `gather`, so that neither URL nor caption is written again.
    """

    def __init__(self, make_words: MakeWords, rules: Sequence[Rule], out: Path, below: str) -> None:
        self._words = make_words()
        self._rules = rules
        self._blocks = out / BUILD / "read"
        self._below = below

    def __call__(self, pointers: pa.Table, scratch: Path) -> Mapping[str, int]:
        links = gather(self._blocks, pointers)
        judged = with_counts(links) if self._rules else links
        reasons = mark(judged, [*(rule() for rule in ROW_RULES), *self._rules])["drop_reason"].combine_chunks()
        rows = _without_reason(reasons)
        left = links.take(pa.array(rows))
        captions = left["caption"].to_pylist()
        forms = self._words.scan(captions)
        sampled = np.flatnonzero(pc.less(left["key"], self._below).to_numpy())
        tagged: list[list[str] | None] = [None] * len(captions)
        for row, names in zip(sampled, self._words.find([captions[row] for row in sampled]), strict=True):
            tagged[row] = names
        write_table(scratch / "tally" / f"{scratch.name}.parquet", tally(forms, tagged, self._words.scan.means))
        place = np.full(links.num_rows, -1)
        place[rows] = np.arange(len(rows))
        where = pa.array(place, mask=place < 0)
        columns = {
            "drop_reason": reasons,
            "forms": forms.take(where),
            "tagged": pa.array(tagged, pa.list_(pa.string())).take(where),
        }
        write_table(scratch / "marked" / f"{scratch.name}.parquet", pa.table(columns))
        dropped = Counter(reason for reason in reasons.to_pylist() if reason is not None)
        return {
            "links": links.num_rows,
            "left": len(rows),
            "sampled": len(sampled),
            **{f"dropped/{reason}": count for reason, count in dropped.items()},
        }


# ---- split


class Selection:
    """A shard's rows with their entities and, where it is settled, the reason why they are dropped.

    Rows that mention kept entities have those; the others have whatever they are likely to mention.
    """

    def __init__(self, make_words: MakeWords, confidence: float, out: Path) -> None:
        self._kept = kept_entities(pq.read_table(fetched(out / "entities.parquet")))
        words = make_words()
        forms = pq.read_table(fetched(out / BUILD / "forms.parquet"))
        self.matcher = Matcher(words.find, words.scan, self._kept, forms, confidence)
        self._build = out / BUILD

    def __call__(self, pointers: pa.Table, shard: str) -> pa.Table:
        """Columns of `gather`, `entities` and `drop_reason`."""
        links = gather(self._build / "read", pointers)
        marked = pq.read_table(fetched(self._build / "mark" / "marked" / f"{shard}.parquet"))
        rows = _without_reason(marked["drop_reason"].combine_chunks())
        left = marked.take(pa.array(rows))
        forms, tagged = left["forms"].combine_chunks(), left["tagged"].to_pylist()
        found = self.matcher.match(links["caption"].take(pa.array(rows)).to_pylist(), forms, tagged)
        without = [at for at, names in enumerate(found) if not names]
        for at, likely in zip(without, self.matcher.likely(forms.take(pa.array(without, pa.int64()))), strict=True):
            names = likely if tagged[at] is None else tagged[at]
            found[at] = [name for name in names if name not in self._kept]  # a likely one may be what the tagger just denied
        entities: list[list[str]] = [[]] * links.num_rows
        for row, names in zip(rows, found, strict=True):
            entities[row] = names
        selected = links.append_column(CORPUS.field("entities"), pa.array(entities, CORPUS.field("entities").type))
        selected = selected.append_column(DROPPED.field("drop_reason"), marked["drop_reason"])
        return refuse(selected, [NoEntity(), RareEntity(self._kept)])


class SplitWork:
    """Writes the kept and the dropped rows of a shard, its part of the index, and what the report needs to know of it.

    `rules` judge the rows that mention a kept entity, those aside that nearly repeat another one: `repeated` is the folder of
    pointers to these, shard by shard, if they are asked for.
    """

    def __init__(
        self, make_words: MakeWords, confidence: float, out: Path, rules: Sequence[Rule], repeated: Path | None = None
    ) -> None:
        self._select = Selection(make_words, confidence, out)
        self._rules, self._repeated, self._signed = rules, repeated, out / BUILD / NEAR

    def __call__(self, pointers: pa.Table, scratch: Path) -> Mapping[str, int]:
        before = dict(self._select.matcher.counts)
        kept, dropped = split(refuse(self._select(pointers, scratch.name), self._rules_for(scratch.name)))
        ways = {way: count - before[way] for way, count in self._select.matcher.counts.items()}
        riding = [field for field in kept.schema if field.name not in (*DROPPED.names, HAS_IMAGE.name)]
        kept, dropped = (_as(table, pa.schema([*schema, *riding])) for table, schema in ((kept, CORPUS), (dropped, DROPPED)))
        write_table(scratch / "kept" / f"{scratch.name}.parquet", kept)
        write_table(scratch / "dropped" / f"{scratch.name}.parquet", dropped)
        write_index_part(scratch / BUILD / "index" / f"{scratch.name}.parquet", kept)
        write_json(scratch / BUILD / "statistics" / f"{scratch.name}.json", describe_shard(kept, dropped))
        return {
            "links": kept.num_rows + dropped.num_rows,
            "kept": kept.num_rows,
            **{f"dropped/{reason}": count for reason, count in Counter(dropped["drop_reason"].to_pylist()).items()},
            **{f"matching/{way}": count for way, count in ways.items()},
        }

    def _rules_for(self, shard: str) -> Sequence[Rule]:
        if self._repeated is None:
            return self._rules
        repeated = gather(self._signed, pq.read_table(fetched(self._repeated / f"{shard}.parquet")))
        return [NearDuplicate(repeated["key"].combine_chunks()), *self._rules]


def refuse(table: pa.Table, rules: Iterable[Rule]) -> pa.Table:
    """`table` with more reasons: `rules` judge the rows that have no `drop_reason` yet."""
    reasons = table["drop_reason"].combine_chunks()
    rows = _without_reason(reasons)
    found = mark(table.drop_columns(["drop_reason"]).take(pa.array(rows)), rules)["drop_reason"].combine_chunks()
    place = np.full(table.num_rows, -1)
    place[rows] = np.arange(len(rows))
    reasons = pc.coalesce(reasons, found.take(pa.array(place, mask=place < 0)))
    return table.set_column(table.column_names.index("drop_reason"), DROPPED.field("drop_reason"), reasons)


def _without_reason(reasons: pa.StringArray) -> npt.NDArray[np.int64]:
    """The rows that nothing has refused so far."""
    return np.flatnonzero(reasons.is_null().to_numpy(zero_copy_only=False))


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)


# ---- near-duplicates


class SignWork:
    """Signatures of the captions that mention a kept entity, in buckets in which similar ones meet."""

    def __init__(self, make_words: MakeWords, confidence: float, out: Path, config: NearDuplicates, buckets: int) -> None:
        self._select = Selection(make_words, confidence, out)
        self._config, self._buckets = config, buckets

    def __call__(self, pointers: pa.Table, scratch: Path) -> Mapping[str, int]:
        kept, _ = split(self._select(pointers, scratch.name))
        signed = sign(kept, self._config, home=int(scratch.name))
        bucket = (signed["band"].to_numpy().view(np.uint64) % np.uint64(self._buckets)).astype(np.int32)
        write_block(scratch / f"{scratch.name}.parquet", signed, bucket, self._buckets)
        return {"signed": kept.num_rows}


class ConfirmWork:
    """Compares what met in a bucket and writes a block of the rows that repeat another, by the shard that they are in."""

    def __init__(self, signed: Path, config: NearDuplicates, shards: int) -> None:
        self._signed, self._config, self._shards = signed, config, shards

    def __call__(self, pointers: pa.Table, scratch: Path) -> Mapping[str, int]:
        repeated = confirm(gather(self._signed, pointers), self._config)
        write_block(scratch / f"{scratch.name}.parquet", repeated, repeated["home"].to_numpy(), self._shards)
        return {"repeated": len(repeated)}
