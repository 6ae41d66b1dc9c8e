"""Building a corpus: contract of the output, same bytes from any order, and the real samples."""

import json
import pickle
import random
import shutil
import string
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError
from filtering.captions.balance import Balance
from filtering.captions.corpus import FINDINGS, FilterConfig, build_corpus, corpus_fingerprint, find_leakage
from filtering.captions.index import merge_index, read_keys, write_index_part
from filtering.captions.near_duplicates import NearDuplicates
from filtering.captions.passes import BUILD, MarkWork, SplitWork, Words
from filtering.captions.reader import SourceConfig
from filtering.captions.rules import DuplicateCaption, TooShort
from filtering.captions.tagger import SHIPPED
from filtering.captions.vocabulary import FileList, FrequencyList, PaperList
from filtering.reports.corpus import write as write_report
from filtering.schema import CORPUS, DROPPED, ENTITIES, INDEX, key_of
from helpers.corpora import bytes_of, config_for, rows_in, write_links
from helpers.paths import CAPTIONS, needs


def test_contract(tmp_path: Path) -> None:
    lines = write_links(tmp_path / "links.tsv")
    summary = build_corpus(config_for(tmp_path / "links.tsv"), tmp_path / "corpus")
    kept, dropped = rows_in(tmp_path / "corpus" / "kept"), rows_in(tmp_path / "corpus" / "dropped")
    assert summary["links"] == len(lines) == len(kept) + len(dropped)
    assert summary["kept"] == len(kept)
    assert summary["dropped"] == dict(Counter(row["drop_reason"] for row in dropped))
    assert {"bad_url", "too_short", "markup", "not_english", "duplicate_link", "no_entity", "rare_entity"} <= set(
        summary["dropped"]
    )
    for folder, schema in (("kept", CORPUS), ("dropped", DROPPED)):
        for path in (tmp_path / "corpus" / folder).glob("*.parquet"):
            table = pq.read_table(path)
            assert table.schema == schema
            assert table["key"].to_pylist() == sorted(table["key"].to_pylist())
    assert all(row["key"] == key_of(row["url"], row["caption"]) for row in kept + dropped)
    assert all(row["entities"] and set(row["entities"]) <= {"dog", "cat", "car"} for row in kept)
    assert {tuple(row["entities"]) for row in dropped if row["caption"] == "the walrus sang alone"} == {("walrus",)}


def test_vocabulary_counts_the_captions_that_passed_the_rules(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    build_corpus(config_for(tmp_path / "links.tsv"), tmp_path / "corpus")
    table = pq.read_table(tmp_path / "corpus" / "entities.parquet")
    assert table.schema == ENTITIES
    rows = table.to_pylist()
    assert [row["entity"] for row in rows[:4]] == ["dog", "cat", "car", "tree"]
    assert [row["kept"] for row in rows[:4]] == [True, True, True, False]
    mentions = Counter(name for row in rows_in(tmp_path / "corpus" / "kept") for name in row["entities"])
    assert {row["entity"]: row["count"] for row in rows if row["kept"]} == mentions


def test_same_bytes_from_any_order_block_size_and_file_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_links(tmp_path / "one.tsv")
    first = build_corpus(config_for(tmp_path / "one.tsv"), tmp_path / "a")
    lines = write_links(tmp_path / "two.tsv", seed=99)
    monkeypatch.setattr("filtering.captions.formats.source.BATCH_ROWS", 7)
    monkeypatch.setattr("filtering.captions.formats.text.PART_BYTES", 1000)
    monkeypatch.setattr("filtering.captions.read_pass.BLOCK_ROWS", 50)
    second = build_corpus(config_for(tmp_path / "two.tsv"), tmp_path / "b")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.tsv").write_text("\n".join(lines[:100]))
    (tmp_path / "parts" / "2.txt").write_text("url\tcaption\n" + "\n".join(lines[100:]))
    third = build_corpus(config_for(tmp_path / "parts"), tmp_path / "c")
    assert first == second == third
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b") == bytes_of(tmp_path / "c")


def test_a_refused_twin_does_not_make_a_duplicate(tmp_path: Path) -> None:
    lines = [f"not a url {number}\ta dog and a cat" for number in range(20)]
    lines += [
        "http://pics.example/1\ta dog and a cat",
        "http://pics.example/2\tA dog and a cat.",
        "http://pics.example/3\ta cat sleeps",
    ]
    (tmp_path / "links.tsv").write_text("\n".join(lines))
    summary = build_corpus(config_for(tmp_path / "links.tsv", min_count=1), tmp_path / "corpus")
    assert summary["dropped"] == {"bad_url": 20, "duplicate_caption": 1}
    twice = build_corpus(
        config_for(tmp_path / "links.tsv", min_count=1, rules=(TooShort(), DuplicateCaption(copies=30))), tmp_path / "twice"
    )
    assert twice["kept"] == 23


def test_what_a_caption_repeats_may_lie_in_another_shard(tmp_path: Path) -> None:
    """The shard of a caption is done again when what it repeats has changed, though it has not."""
    caption = "a dog runs along the wide sandy beach under a bright summer sky near the old pier"
    other = f"{caption} again"
    key = key_of("http://pics.example/1", caption)
    urls = [f"http://pics.example/{number}" for number in range(2, 50)]
    smaller, larger = (next(url for url in urls if (key_of(url, other) < key) == less) for less in (True, False))
    config = config_for(tmp_path / "links", near_duplicates=NearDuplicates(threshold=0.7), min_count=1)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "same.tsv").write_text(f"http://pics.example/1\t{caption}")
    for url, kept in ((smaller, other), (larger, caption)):
        (tmp_path / "links" / "changed.tsv").write_text(f"{url}\t{other}")
        build_corpus(config, tmp_path / "corpus")
        assert [row["caption"] for row in rows_in(tmp_path / "corpus" / "kept")] == [kept]


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    (tmp_path / "mine.txt").write_text("dog\n")
    shutil.copytree(SHIPPED, tmp_path / "tagger")
    config = config_for(
        tmp_path / "links.tsv", vocabulary=FileList(path=str(tmp_path / "mine.txt")), tagger=str(tmp_path / "tagger")
    )
    first = corpus_fingerprint(config, {})
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "links.tsv", tmp_path / "elsewhere")
    moved = replace(config, source=replace(config.source, path=str(tmp_path / "elsewhere" / "links.tsv")))
    assert corpus_fingerprint(moved, {}) == first
    assert corpus_fingerprint(config, {"pets": (("dog",),)}) == first  # what is evaluated has no say in the corpus
    honest = replace(config, exclude_benchmark_classes=True)  # unless its classes are left out
    assert corpus_fingerprint(honest, {"pets": (("dog",),)}) != corpus_fingerprint(honest, {"pets": (("cat",),)})
    seen = {first, corpus_fingerprint(honest, {}), corpus_fingerprint(replace(config, top_k=9), {})}
    (tmp_path / "mine.txt").write_text("cat\n")
    seen.add(corpus_fingerprint(config, {}))
    (tmp_path / "tagger" / "vocab" / "trained_again").write_text("")
    seen.add(corpus_fingerprint(config, {}))
    with (tmp_path / "links.tsv").open("a") as file:
        file.write("\nhttp://pics.example/new\ta dog")
    seen.add(corpus_fingerprint(config, {}))
    assert len(seen) == 6


def test_many_small_files_are_few_blocks(tmp_path: Path) -> None:
    """A row group for each shard and file would be more footer than rows."""
    lines = write_links(tmp_path / "links.tsv")
    (tmp_path / "links").mkdir()
    for number in range(200):
        (tmp_path / "links" / f"{number:03d}.tsv").write_text("\n".join(["url\tcaption", *lines[number::200]]))
    summary = build_corpus(config_for(tmp_path / "links"), tmp_path / "many")
    assert summary == build_corpus(config_for(tmp_path / "links.tsv"), tmp_path / "one")
    assert 64 <= len(list((tmp_path / "many" / "_build" / "read").glob("*.parquet"))) < 150


def test_the_index_names_the_kept_rows_of_each_entity(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    out = tmp_path / "corpus"
    build_corpus(config_for(tmp_path / "links.tsv"), out)
    index = pq.read_table(out / "index.parquet")
    assert index.schema == INDEX
    pairs = sorted((name, row["key"]) for row in rows_in(out / "kept") for name in row["entities"])
    assert list(zip(index["entity"].to_pylist(), index["key"].to_pylist(), strict=True)) == pairs
    assert read_keys(out / "index.parquet", "cat").to_pylist() == [key for name, key in pairs if name == "cat"]
    assert read_keys(out / "index.parquet", "unicorn").to_pylist() == []


def test_an_index_larger_than_a_row_group_stays_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filtering.captions.index.GROUP_ROWS", 100)
    rows = [
        {"key": key_of(str(number), ""), "url": "", "caption": "", "entities": ["dog"] if number % 3 else ["ant", "dog"]}
        for number in range(2000)
    ]
    for part in range(4):
        table = pa.Table.from_pylist(rows[part::4], schema=CORPUS).sort_by("key")
        write_index_part(tmp_path / "parts" / f"{part}.parquet", table)
    write_index_part(tmp_path / "parts" / "4.parquet", pa.Table.from_pylist([], schema=CORPUS))
    merge_index(sorted((tmp_path / "parts").iterdir()), tmp_path / "index.parquet")
    index = pq.read_table(tmp_path / "index.parquet")
    pairs = sorted((name, row["key"]) for row in rows for name in row["entities"])
    assert list(zip(index["entity"].to_pylist(), index["key"].to_pylist(), strict=True)) == pairs
    groups = pq.read_metadata(tmp_path / "index.parquet")
    assert max(groups.row_group(number).num_rows for number in range(groups.num_row_groups)) < 200


def test_the_users_own_list(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    (tmp_path / "mine.txt").write_text("hound, dog\nwalrus\n")
    summary = build_corpus(
        config_for(tmp_path / "links.tsv", vocabulary=FileList(path=str(tmp_path / "mine.txt"))), tmp_path / "corpus"
    )
    kept = rows_in(tmp_path / "corpus" / "kept")
    assert {name for row in kept for name in row["entities"]} == {"hound", "walrus"}
    assert summary["entities"] == 2
    assert all("dog" in row["caption"] or "walrus" in row["caption"] for row in kept)


def test_the_papers_script_takes_captions_as_they_come(tmp_path: Path) -> None:
    lines = [
        "http://a.example/1\ta dog",
        "http://a.example/2\tA Dog",
        "no address\tdog dog dog dog dog dog",
        "http://a.example/3\ttwo dogs",
    ]
    (tmp_path / "links.tsv").write_text("\n".join(lines))
    summary = build_corpus(config_for(tmp_path / "links.tsv", vocabulary=PaperList()), tmp_path / "corpus")
    assert {row["caption"] for row in rows_in(tmp_path / "corpus" / "kept")} == {"a dog", "dog dog dog dog dog dog"}
    assert summary["dropped"] == {"no_entity": 2}


def test_near_duplicates_and_balance(tmp_path: Path) -> None:
    base = "a brown dog runs along the wide sandy beach under a bright blue summer sky near the old pier"
    captions = [base, base.replace("brown", "black"), base + " today", "a cat on a red sofa in the living room by the window"]
    draw = random.Random(3)
    captions += [f"a bird {' '.join(draw.choices(string.ascii_lowercase, k=9))} in the morning" for _ in range(300)]
    lines = [f"http://pics.example/{number}.jpg\t{caption}" for number, caption in enumerate(captions)]
    (tmp_path / "links.tsv").write_text("\n".join(lines))
    settings: dict[str, Any] = {
        "near_duplicates": NearDuplicates(threshold=0.7),
        "balance": Balance(per_entity=60),
        "min_count": 1,
        "rules": (),
    }
    summary = build_corpus(replace(config_for(tmp_path / "links.tsv", **settings), top_k=9), tmp_path / "corpus")
    kept = [row["caption"] for row in rows_in(tmp_path / "corpus" / "kept")]
    assert sum("dog" in caption for caption in kept) == 1
    assert sum("cat" in caption for caption in kept) == 1
    assert summary["dropped"]["near_duplicate"] >= 2
    assert 20 < sum("bird" in caption for caption in kept) < 300
    other = build_corpus(replace(config_for(tmp_path / "links.tsv", **settings), top_k=9, shards=3), tmp_path / "other")
    assert {key: other[key] for key in ("kept", "dropped")} == {key: summary[key] for key in ("kept", "dropped")}


def test_leakage_and_leaving_benchmark_classes_out(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    benchmarks = {"pets": (("dog", "hound"), ("kitty", "cat")), "cities": (("tram",),)}
    summary = build_corpus(config_for(tmp_path / "links.tsv"), tmp_path / "corpus", benchmarks=benchmarks)
    kept = rows_in(tmp_path / "corpus" / "kept")
    share = sum(bool({"dog", "cat"} & set(row["entities"])) for row in kept) / len(kept)
    assert summary["leakage"] == {"cities": 0.0, "pets": pytest.approx(share, abs=1e-5)}
    honest = build_corpus(
        config_for(tmp_path / "links.tsv", exclude_benchmark_classes=True), tmp_path / "honest", benchmarks=benchmarks
    )
    assert honest["leakage"] == {"cities": 0.0, "pets": 0.0}
    names = {name for row in rows_in(tmp_path / "honest" / "kept") for name in row["entities"]}
    assert names
    assert not names & {"dog", "cat"}
    every = {"all": tuple((name,) for name in pq.read_table(tmp_path / "corpus" / "entities.parquet")["entity"].to_pylist())}
    with pytest.raises(InputError, match=r"^filter.exclude_benchmark_classes: "):
        build_corpus(config_for(tmp_path / "links.tsv", exclude_benchmark_classes=True), tmp_path / "none", benchmarks=every)


def test_a_sample_instead_of_all_gives_nearly_the_same(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv", rows=3000)
    whole = build_corpus(config_for(tmp_path / "links.tsv"), tmp_path / "whole")
    sampled = build_corpus(config_for(tmp_path / "links.tsv", tagged_sample=500), tmp_path / "sampled")
    assert abs(whole["kept"] - sampled["kept"]) <= 0.01 * whole["kept"]
    matching = json.loads((tmp_path / "sampled" / BUILD / FINDINGS).read_text())["details"]["matching"]
    assert 0 < matching["sampled"] < 700
    names = {name for row in rows_in(tmp_path / "sampled" / "kept") for name in row["entities"]}
    assert names == {"dog", "cat", "car"}


def test_report(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    out = tmp_path / "corpus"
    summary = build_corpus(config_for(tmp_path / "links.tsv"), out)
    report = write_report(out, summary, find_leakage(config_for(tmp_path / "links.tsv"), out, {}), source=["links.tsv"])
    assert report == json.loads((out / "report.json").read_text())
    assert report["digest"] == summary["digest"]
    assert [step["rule"] for step in report["funnel"]] == list(summary["dropped"])
    assert report["funnel"][-1]["left"] == summary["kept"]
    assert [row["entity"] for row in report["top_entities"]] == ["dog", "cat", "car"]
    assert [row["entity"] for row in report["next_in_line"]][:1] == ["tree"]
    assert len(report["samples"]["kept"]) == 10
    assert all(rows for rows in report["samples"]["dropped"].values())
    assert str(tmp_path) not in (out / "report.json").read_text()
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_work_is_what_a_cluster_can_send() -> None:
    words = partial(Words, FrequencyList(), ("dog",), "")
    for make in (
        partial(MarkWork, words, (TooShort(),), Path(), "8"),
        partial(SplitWork, words, 0.9, Path(), [TooShort()], {"voc21": frozenset({"dog"})}),
    ):
        assert pickle.loads(pickle.dumps(make)).args == make.args or pickle.loads(pickle.dumps(make)).func is make.func


@pytest.mark.parametrize("key", ["top_k", "min_count", "tagged_sample", "shards", "confidence"])
def test_values_out_of_range(key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key}: "):
        FilterConfig(**{key: -1})


def test_nothing_to_keep_and_wrong_tagger(tmp_path: Path) -> None:
    (tmp_path / "links.tsv").write_text("http://pics.example/1\tan idea about the meaning of time\n")
    with pytest.raises(InputError, match=r"^filter.source.path: none of the 1 captions that passed .* mentions anything"):
        build_corpus(config_for(tmp_path / "links.tsv"), tmp_path / "corpus")
    with pytest.raises(InputError, match=r"^filter.tagger: "):
        build_corpus(config_for(tmp_path / "links.tsv", tagger="no_such_model"), tmp_path / "corpus")
    with pytest.raises(InputError, match=r"^filter.source.path: no such file"):
        build_corpus(config_for(tmp_path / "missing.tsv"), tmp_path / "corpus")


@needs(CAPTIONS)
@pytest.mark.parametrize(
    ("name", "links", "kept", "expected"),
    [
        pytest.param(
            "cc3m_validation.tsv",
            15_833,
            (0.6, 0.75),
            {"person", "woman", "man", "tree", "car", "dog", "water", "house", "flower"},
            marks=pytest.mark.slow,
        ),
        (
            "web_alt_text_10k.parquet",
            10_000,
            (0.3, 0.45),
            {"woman", "man", "dress", "book", "chair", "shoe", "table", "car", "dog"},
        ),
    ],
)
def test_real_captions(tmp_path: Path, name: str, links: int, kept: tuple[float, float], expected: set[str]) -> None:
    summary = build_corpus(FilterConfig(source=SourceConfig(path=str(CAPTIONS / name))), tmp_path)
    assert summary["links"] == links
    assert kept[0] < summary["kept"] / links < kept[1]
    table = pq.read_table(tmp_path / "entities.parquet")
    top = set(table["entity"].to_pylist()[:60])
    assert expected <= top
    assert not top & {"background", "image", "stock", "photo", "world", "style", "day", "home", "view", "front", "collection"}
