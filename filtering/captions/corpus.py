"""Links in, the filtered corpus out: read, mark, choose the vocabulary, split.

    read        the source in parts; rows go into shards by the hash of their caption, so that duplicates meet, and neither
                the order of the input nor the size of its parts matters
    mark        caption rules; of what is left the forms in which entities may be mentioned; a sample of the captions is tagged
    vocabulary  tallies of all shards added up: how often a form is a noun, how many captions mention an entity, which to keep
    split       captions that mention no kept entity are dropped; the tagger reads those that the forms leave undecided
    index       which kept rows mention an entity

Every pass is `ShardWork` and runs wherever a `Runner` runs it; each finished unit has a marker and is not done again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering import InputError
from filtering.captions.balance import Balance
from filtering.captions.formats.source import Part, SourceConfig
from filtering.captions.index import merge_index, merge_parts
from filtering.captions.leakage import count_leaks, leaked
from filtering.captions.lexicon import load_lexicon
from filtering.captions.matching import add_tallies, entity_counts
from filtering.captions.near_duplicates import NearDuplicates
from filtering.captions.opt_outs import Forgotten
from filtering.captions.outcome import check_kept, check_rows, no_entity_kept
from filtering.captions.passes import BUILD, NEAR, ConfirmWork, MakeWords, MarkWork, SignWork, SplitWork, Words
from filtering.captions.read_pass import ReadWork, point_at_parts, secret_paths, shards_for
from filtering.captions.reader import no_rows, parts_of, source_fingerprint
from filtering.captions.row_rules import ROW_RULES, ColumnRule
from filtering.captions.rules import DEFAULT_RULES, ENTITY_RULES, RuleConfig
from filtering.captions.statistics import merge
from filtering.captions.vocabulary import FrequencyList, ListConfig
from filtering.files import digest_of, digest_of_file, write_json, write_table
from filtering.link_set import LinkSet
from filtering.partition import point_at_shards, remove_strangers
from filtering.schema import FORMS, KEY_LENGTH
from filtering.shards import Marker, Rule, Runner, digest_of_markers, run_local, sum_counts

VERSION = 3
"""Raise it when the same config gives other rows: it is part of every fingerprint."""

TALLIES_AT_ONCE = 16

FINDINGS = "findings.json"
"""In `_build`: what the report tells beside the summary, {"statistics": merged over shards, "details": see `_details`}."""

Benchmarks = Mapping[str, Sequence[Sequence[str]]]
"""Per benchmark its classes, and of each class its name and synonyms."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """How links become a corpus."""

    source: SourceConfig = field(default_factory=SourceConfig)
    """Where the links are and which columns hold them."""
    rules: tuple[RuleConfig, ...] = DEFAULT_RULES
    """Caption rules in their order; the first that refuses a row is its reason."""
    vocabulary: ListConfig = field(default=FrequencyList(), metadata={"former": "list"})
    """Which entities are kept: the most frequent ones (frequency), OVSegmentor's (paper), or your own (file)."""
    top_k: int = 100
    """Number of entities that a frequency list keeps: the most frequent visual nouns of the corpus."""
    min_count: int = 2
    """Fewest captions that must mention an entity for a frequency list to keep it."""
    stop_words: tuple[str, ...] = field(default=(), metadata={"former": "stop"})
    """Names that are never entities, beside the shipped stop list."""
    exclude_benchmark_classes: bool = False
    """Leave the classes of the benchmarks in `evaluate` out of the list: the corpus is then not selected for what is tested."""
    tagger: str = ""
    """spaCy model that tells nouns, for instance en_core_web_sm; "" is the small tagger that ships with this package."""
    tagged_sample: int = field(default=100_000, metadata={"former": "sample"})
    """Captions that the tagger reads to learn how often each form is a noun; a corpus of fewer links is tagged whole."""
    confidence: float = field(default=0.85, metadata={"former": "certain"})
    """Chance of mentioning a kept entity from which a caption is kept without the tagger; dropped at 1 minus it (0.5 to 1)."""
    near_duplicates: NearDuplicates | None = None
    """Drop captions that nearly repeat another kept one; null keeps them."""
    balance: Balance | None = None
    """Thin out captions of very frequent entities, as MetaCLIP does; null keeps them all."""
    shards: int = 0
    """Number of corpus shards, units of work and of resuming; 0: one for each 50,000 links of the source, and at least 16."""

    def __post_init__(self) -> None:
        for key, least in (("top_k", 1), ("min_count", 1), ("tagged_sample", 1), ("shards", 0)):
            if getattr(self, key) < least:
                raise InputError(f"{key}: must be at least {least}, not {getattr(self, key)}")
        if not 0.5 <= self.confidence <= 1:
            raise InputError(f"confidence: is a share and must lie between 0.5 and 1, not {self.confidence}")
        for rule in self.rules:
            if isinstance(rule, ColumnRule) and rule.column not in self.source.keep_columns:
                raise InputError(f"rules: {rule.column!r} is judged, but source.keep_columns does not carry it; add it there")

    @property
    def applied_rules(self) -> tuple[RuleConfig, ...]:
        """The caption rules, unless the list takes captions as they come: then they are not cleaned either."""
        return self.rules if self.vocabulary.caption_rules else ()


def build_corpus(
    config: FilterConfig,
    out: Path,
    *,
    run: Runner = run_local,
    benchmarks: Benchmarks | None = None,
    forgotten: LinkSet = LinkSet(),  # noqa: B008 -- frozen
) -> dict[str, Any]:
    """Build the corpus of `config` in the folder `out`; what an earlier call finished is not done again.

    `out` gets `kept/*.parquet` (schema `CORPUS`), `dropped/*.parquet` (`DROPPED`), `entities.parquet` (`ENTITIES`),
    `index.parquet` (`INDEX`). The folder `_build` holds what resuming needs, and `FINDINGS` for `filtering.reports.corpus`.
    `benchmarks` are the evaluation's classes, for the leakage and for `exclude_benchmark_classes`. Images that are `forgotten`
    are dropped last: the vocabulary, and what was dropped for another reason, stay as they are.

    Returns:
        {"links": rows read, "kept": rows kept, "dropped": {reason: rows}, "entities": names kept, "shards": files,
        "digest": of all tables, "leakage": {benchmark: share of the kept captions that mention a class of it}}.

    Raises:
        InputError: a source that cannot be read, no such tagger, a faulty list, no entity that is frequent enough, or no row
            that is kept.
    """
    build = out / BUILD
    make_words = partial(Words, config.vocabulary, config.stop_words, config.tagger)
    words = make_words()  # a wrong name should be reported here, not by a worker
    found = parts_of(config.source)
    config = replace(config, shards=config.shards or shards_for(found))
    shards, links = read(config, found, build, run)

    limit = _sample_limit(config.tagged_sample, links)
    marking = digest_of([VERSION, [asdict(rule) for rule in config.applied_rules], words.fingerprint(), limit])
    work = partial(MarkWork, make_words, config.applied_rules, out, limit)
    marked = run(work, shards, build / "mark", fingerprint=marking, label="mark")
    check_rows(marked, shards, build)

    forms = _added_up(build / "mark" / "tally", marked)
    write_table(build / "forms.parquet", forms)
    excluded = (benchmarks or {}) if config.exclude_benchmark_classes else {}
    entities = choose_entities(config, forms, leaked(excluded, words.lexicon), marked)
    write_table(out / "entities.parquet", entities)

    tables = [digest_of_file(path) for path in (out / "entities.parquet", build / "forms.parquet")]
    chosen = digest_of([marking, tables, config.confidence])
    repeated, repeated_digest = None, ""
    if config.near_duplicates:
        repeated, repeated_digest = find_near_duplicates(config, config.near_duplicates, make_words, shards, out, chosen, run)
    late = [part and asdict(part) for part in (config.near_duplicates, config.balance)]
    splitting = digest_of([chosen, late, repeated_digest, *_of(forgotten)])  # what a shard repeats may lie in another one
    split = partial(SplitWork, make_words, config.confidence, out, _late_rules(config, entities, forgotten), repeated)
    markers = run(split, shards, out, fingerprint=splitting, label="split")
    check_kept(markers, out / "dropped")
    _remove_leftovers(out, markers)
    merged = merge_parts([build / "index" / f"{marker.shard}.parquet" for marker in markers], build / "merged", run)
    merge_index(merged, out / "index.parquet")

    statistics = merge(json.loads((build / "statistics" / f"{marker.shard}.json").read_bytes()) for marker in markers)
    summary = _summary(config, out, markers)
    write_json(build / FINDINGS, {"statistics": statistics, "details": _details(config, marked, markers)})
    return {**summary, "leakage": shares(find_leakage(config, out, benchmarks or {}), summary["kept"])}


def find_leakage(config: FilterConfig, out: Path, benchmarks: Benchmarks) -> dict[str, Any]:
    """What the built corpus in `out` shares with benchmarks, whatever its own list left out.

    Returns:
        {"leaks": {benchmark: {class: entity}}, "classes": {benchmark: how many}, "captions": {benchmark: kept rows that mention
        one}, "leaked": kept rows that mention one of any}.
    """
    leaks = leaked(benchmarks, config.vocabulary.lexicon(load_lexicon(config.stop_words)))
    names = {name: frozenset(found.values()) for name, found in leaks.items()}
    classes = {name: len(found) for name, found in benchmarks.items()}
    return {"leaks": leaks, "classes": classes, **count_leaks((out / "kept").glob("*.parquet"), names)}


def shares(leakage: Mapping[str, Any], kept: int) -> dict[str, float]:
    """Of `kept` captions the share that mentions a class, by benchmark."""
    return {name: round(count / max(1, kept), 6) for name, count in leakage["captions"].items()}


def _late_rules(config: FilterConfig, entities: pa.Table, forgotten: LinkSet) -> list[Rule]:
    """What judges the rows that mention a kept entity; `entities` are the vocabulary (schema `ENTITIES`)."""
    counts = dict(zip(*(entities[name].to_pylist() for name in ("entity", "count")), strict=True)) if config.balance else {}
    balance: list[Rule] = [config.balance.rule(counts)] if config.balance else []
    return [*balance, *([Forgotten(forgotten)] if forgotten else [])]


def _of(forgotten: LinkSet) -> list[str]:
    """What it adds to a fingerprint: nothing where nothing is forgotten."""
    return [forgotten.digest] if forgotten else []


def corpus_fingerprint(
    config: FilterConfig,
    benchmarks: Benchmarks,
    forgotten: LinkSet = LinkSet(),  # noqa: B008 -- frozen
) -> str:
    """Changes with whatever changes the corpus: the settings, and the content of the links, the list and the tagger they name.

    The benchmarks' classes are among it where they are left out of the list, and so is what is `forgotten`.

    Raises:
        InputError: as `build_corpus` does for a source, a list or a tagger that is not there.
    """
    settings = asdict(config)
    del settings["source"]["path"]  # the same files elsewhere are the same links
    words = Words(config.vocabulary, config.stop_words, config.tagger)
    excluded = benchmarks if config.exclude_benchmark_classes else None
    return digest_of([VERSION, settings, source_fingerprint(config.source), words.fingerprint(), excluded, *_of(forgotten)])


def read(config: FilterConfig, found: Sequence[Part], build: Path, run: Runner) -> tuple[list[Path], int]:
    """Bring the parts of the source into shards: one pointer per shard to its rows, and how many. InputError of none."""
    raw = not config.vocabulary.caption_rules
    parts = point_at_parts(build / "parts", [replace(part, raw=raw) for part in found])
    settings = {key: value for key, value in asdict(config.source).items() if key != "path"}
    identity = digest_of([VERSION, settings, source_fingerprint(config.source), config.shards])
    markers = run(
        partial(ReadWork, config.shards, secret_paths(found)), parts, build / "read", fingerprint=identity, label="read"
    )
    links = sum_counts(markers).get("links", 0)
    if not links:
        raise no_rows(config.source)
    return point_at_shards(build / "shards", build / "read", markers, config.shards, run), links


def _added_up(tallies: Path, marked: Sequence[Marker]) -> pa.Table:
    """The tallies of all shards in one; some at a time, as all at once would grow with the corpus."""
    forms = FORMS.empty_table()
    for start in range(0, len(marked), TALLIES_AT_ONCE):
        some = (tallies / f"{marker.shard}.parquet" for marker in marked[start : start + TALLIES_AT_ONCE])
        forms = add_tallies([forms, *map(pq.read_table, some)])
    return forms


def _sample_limit(sample: int, links: int) -> str:
    """The key below which a row is in the sample that the tagger reads: keys are hashes, so any range is a random sample."""
    if links <= sample:
        return "g"  # above every hexadecimal digit
    return f"{sample * 16**KEY_LENGTH // links:0{KEY_LENGTH}x}"


def choose_entities(
    config: FilterConfig, forms: pa.Table, leaks: Mapping[str, Mapping[str, str]], marked: Sequence[Marker]
) -> pa.Table:
    """The vocabulary (schema `ENTITIES`) that the list makes of the tally. InputError if it keeps nothing.

    `marked` are the markers of the mark pass, for the message.
    """
    classes = frozenset(name for found in leaks.values() for name in found.values())
    choose = partial(config.vocabulary.choose, entity_counts(forms), top_k=config.top_k, min_count=config.min_count)
    entities = choose(excluded=classes if config.exclude_benchmark_classes else frozenset())
    if not pc.any(entities["kept"]).as_py():
        if pc.any(choose(excluded=frozenset())["kept"]).as_py():
            raise InputError(
                "filter.exclude_benchmark_classes: every entity that the list could keep is a benchmark's class; "
                "set it to false, or choose a list that names others"
            )
        raise no_entity_kept(entities, config.min_count, marked)
    return entities


def find_near_duplicates(
    config: FilterConfig, near: NearDuplicates, make_words: MakeWords, shards: list[Path], out: Path, chosen: str, run: Runner
) -> tuple[Path, str]:
    """Find the rows whose caption nearly repeats another's: sign all captions, compare those that meet.

    Returns the folder of pointers to these rows, one for each shard, and the digest of the rows.
    """
    build = out / BUILD
    fingerprint = digest_of([chosen, asdict(near)])
    sign = partial(SignWork, make_words, config.confidence, out, near, config.shards)
    signed = run(sign, shards, build / "sign", fingerprint=fingerprint, label="sign")
    buckets = point_at_shards(build / "buckets", build / "sign", signed, config.shards, run)
    confirm = partial(ConfirmWork, build / "sign", near, config.shards)
    confirmed = run(confirm, buckets, build / NEAR, fingerprint=fingerprint, label="confirm")
    point_at_shards(build / "repeated", build / NEAR, confirmed, config.shards, run)
    return build / "repeated", digest_of_markers(confirmed)


def _summary(config: FilterConfig, out: Path, markers: Sequence[Marker]) -> dict[str, Any]:
    counts = sum_counts(markers)
    reasons = dict.fromkeys(rule.name for rule in (*ROW_RULES, *config.applied_rules, *ENTITY_RULES))
    dropped = {reason: counts.get(f"dropped/{reason}", 0) for reason in reasons}
    tables = [(file, digest) for marker in markers for file, digest in marker.files.items() if not file.startswith(BUILD)]
    tables += [(name, digest_of_file(out / name)) for name in ("entities.parquet", "index.parquet")]
    return {
        "links": counts["links"],
        "kept": counts["kept"],
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "entities": int(pc.sum(pq.read_table(out / "entities.parquet")["kept"]).as_py()),
        "shards": config.shards,
        "digest": digest_of(sorted(tables)),
    }


def _details(
    config: FilterConfig,
    marked: Sequence[Marker],
    markers: Sequence[Marker],
) -> dict[str, Any]:
    """What the report tells beside the counts."""
    counts = sum_counts(markers)
    settings = {
        key: value for key, value in asdict(config).items() if key != "source"
    }  # where a corpus came from is no part of it
    return {
        "list": {**asdict(config.vocabulary), "top_k": config.top_k, "min_count": config.min_count},
        "matching": {
            "sampled": sum_counts(marked).get("sampled", 0),
            **{way: counts.get(f"matching/{way}", 0) for way in ("rejected", "decided", "tagged")},
        },
        "config": {**settings, "rules": [asdict(rule) for rule in config.applied_rules]},
    }


def _remove_leftovers(out: Path, markers: Iterable[Marker]) -> None:
    """Delete shards that an earlier config with more of them left behind, and what a killed run was about to rename."""
    ours = [out / file for marker in markers for file in marker.files]
    for folder in ("kept", "dropped", f"{BUILD}/index", f"{BUILD}/statistics"):
        remove_strangers(out / folder, ours)
    for path in out.rglob(".*.tmp"):
        path.unlink()
