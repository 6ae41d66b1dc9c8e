"""Building a corpus: contract of the output, same bytes from any order, resuming after a kill, and the real samples."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from filtering.corpus import FilterConfig, SplitWork, TagWork, build_corpus
from filtering.reader import SourceConfig
from filtering.rules import DuplicateCaption, TooShort
from filtering.schema import CORPUS, DROPPED, ENTITIES, key_of
from filtering.stage import InputError, MakeWork, Marker, run_local

CAPTIONS = Path(__file__).parents[2] / "shared" / "data" / "captions"
HOSTILE = [
    "\0\0\0",
    '"',
    "\t\t",
    "<PERSON>" * 400,
    "\u202e reversed dog",
    "a" * 70_000,
    "&#0; &#xD800; &bogus;",
    "🐕🐕🐕 dog dog",
]


def write_links(path: Path, seed: int = 0, rows: int = 400) -> list[str]:
    """Captions in which "dog" is twice as frequent as "cat", and so on, with junk and duplicates; shuffled by `seed`."""
    draw = random.Random(7)
    nouns = ["dog"] * 8 + ["cat"] * 4 + ["red car"] * 2 + ["tree"]
    captions = [f"a {draw.choice(nouns)} near the {draw.choice(nouns)} in picture {number}" for number in range(rows)]
    captions += [
        "short",
        "<b>a dog</b> in html",
        "собака бежит по траве",
        "an idea about the meaning of time",
        "the walrus sang alone",
    ]
    captions += [caption.replace("\t", " ") for caption in HOSTILE] + captions[:20]
    lines = [f"http://pics.example/{number % (rows + 13)}.jpg\t{caption}" for number, caption in enumerate(captions)]
    lines.append("a row without an address")
    random.Random(seed).shuffle(lines)
    path.write_text("\n".join(lines))
    return lines


def config_for(path: Path, **settings: Any) -> FilterConfig:
    return FilterConfig(source=SourceConfig(path=str(path)), top_k=3, shards=4, **settings)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def bytes_of(out: Path) -> dict[str, bytes]:
    paths = [*out.glob("kept/*"), *out.glob("dropped/*"), out / "entities.parquet", out / "report.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


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
    monkeypatch.setattr("filtering.reader.BATCH_ROWS", 7)
    monkeypatch.setattr("filtering.corpus.BLOCK_ROWS", 50)
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


class Counting:
    """A runner that counts how many shards were really worked on, and gives up after `limit` of them."""

    def __init__(self, limit: int = 10**9) -> None:
        self.done: list[str] = []
        self.limit = limit

    def __call__(
        self, make_work: MakeWork, sources: Sequence[Path], out: Path, *, fingerprint: str, label: str
    ) -> list[Marker]:
        make_work = pickle.loads(pickle.dumps(make_work))  # what a cluster does with it

        def counting() -> Any:
            work = make_work()

            def call(table: Any, scratch: Path) -> Any:
                if len(self.done) == self.limit:
                    raise KeyboardInterrupt
                counts = work(table, scratch)
                self.done.append(f"{label} {scratch.name}")
                return counts

            return call

        return run_local(counting, sources, out, fingerprint=fingerprint, label=label)


@pytest.mark.parametrize("limit", [2, 5])
def test_interrupted_anywhere_it_goes_on_and_ends_the_same(tmp_path: Path, limit: int) -> None:
    write_links(tmp_path / "links.tsv")
    config = config_for(tmp_path / "links.tsv")
    whole = build_corpus(config, tmp_path / "whole", run=Counting())
    with pytest.raises(KeyboardInterrupt):
        build_corpus(config, tmp_path / "cut", run=Counting(limit))
    rest = Counting()
    assert build_corpus(config, tmp_path / "cut", run=rest) == whole
    assert len(rest.done) == 8 - limit
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    again = Counting()
    assert build_corpus(config, tmp_path / "cut", run=again) == whole
    assert again.done == []


def test_lost_markers_and_outputs_are_made_again(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    config, out = config_for(tmp_path / "links.tsv"), tmp_path / "corpus"
    whole = build_corpus(config, out)
    before = bytes_of(out)
    (out / "_done" / "00001.done.json").unlink()
    (out / "_build" / "_done" / "00002.done.json").unlink()
    (out / "kept" / "00003.parquet").unlink()
    repair = Counting()
    assert build_corpus(config, out, run=repair) == whole
    assert sorted(repair.done) == ["split 00001", "split 00003", "tag 00002"]
    assert bytes_of(out) == before


def test_a_changed_config_does_again_what_depends_on_it(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    config, out = config_for(tmp_path / "links.tsv"), tmp_path / "corpus"
    build_corpus(config, out)
    runner = Counting()
    build_corpus(replace(config, top_k=2), out, run=runner)
    assert {name.split()[0] for name in runner.done} == {"split"}
    assert len(runner.done) == 4
    runner = Counting()
    build_corpus(replace(config, stop=("dog",)), out, run=runner)
    assert len(runner.done) == 8
    fewer = build_corpus(replace(config, shards=2), out)
    assert len(list((out / "kept").glob("*.parquet"))) == len(list((out / "dropped").glob("*.parquet"))) == 2
    assert fewer == build_corpus(replace(config, shards=2), tmp_path / "fresh")


SCRIPT = """
import os, sys, time
from pathlib import Path
from filtering.corpus import FilterConfig, build_corpus
from filtering.reader import SourceConfig
replace, calls = os.replace, []
def stop_at(source, target):
    calls.append(target)
    if len(calls) == int(sys.argv[3]):
        print("stopped", flush=True)
        time.sleep(600)
    replace(source, target)
os.replace = stop_at
build_corpus(FilterConfig(source=SourceConfig(path=sys.argv[1]), top_k=3, shards=4), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("rename", [3, 9, 27, 46])
def test_kill_minus_nine(tmp_path: Path, rename: int) -> None:
    """Every file appears by a rename: killed before the n-th one, in the partition, either pass, or the report."""
    write_links(tmp_path / "links.tsv")
    config, out = config_for(tmp_path / "links.tsv"), tmp_path / "corpus"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "links.tsv"), str(out), str(rename)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()
    rest = Counting()
    summary = build_corpus(config, out, run=rest)
    finished = max(0, rename - 6) // 5  # the partition renames 5 times, a shard of either pass too, its marker last
    assert len(rest.done) == 8 - finished
    assert summary == build_corpus(config, tmp_path / "whole")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert not list(out.rglob("*.tmp"))


def test_report(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    out = tmp_path / "corpus"
    summary = build_corpus(config_for(tmp_path / "links.tsv"), out)
    report = json.loads((out / "report.json").read_text())
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
    for make in (partial(TagWork, (TooShort(),), ("dog",), ""), partial(SplitWork, frozenset({"dog"}))):
        assert pickle.loads(pickle.dumps(make))() is not None


@pytest.mark.parametrize("key", ["top_k", "min_count", "shards"])
def test_values_out_of_range(key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key}: "):
        FilterConfig(**{key: 0})


def test_nothing_to_keep_and_wrong_tagger(tmp_path: Path) -> None:
    (tmp_path / "links.tsv").write_text("http://pics.example/1\tan idea about the meaning of time\n")
    with pytest.raises(InputError, match=r"^filter.min_count: "):
        build_corpus(config_for(tmp_path / "links.tsv"), tmp_path / "corpus")
    with pytest.raises(InputError, match=r"^filter.tagger: "):
        build_corpus(config_for(tmp_path / "links.tsv", tagger="no_such_model"), tmp_path / "corpus")
    with pytest.raises(InputError, match=r"^filter.source.path: no such file"):
        build_corpus(config_for(tmp_path / "missing.tsv"), tmp_path / "corpus")


@pytest.mark.skipif(not CAPTIONS.exists(), reason="the real captions are not here")
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
