"""What keeps memory flat changes no corpus: shuffles in two steps, an index merged some parts at a time."""

from pathlib import Path
from typing import Any

import pytest

from filtering import partition
from filtering.captions import corpus, index, read_pass
from filtering.captions.corpus import FilterConfig, build_corpus
from filtering.captions.formats.source import Part, SourceConfig
from filtering.captions.near_duplicates import NearDuplicates
from filtering.captions.read_pass import FEWEST_SHARDS, ROWS_PER_SHARD, shards_for
from filtering.captions.rules import TooShort


def build(folder: Path, links: Path, **settings: Any) -> dict[str, Any]:
    source = SourceConfig(path=str(links))
    config = FilterConfig(
        source=source, top_k=9, min_count=1, rules=(TooShort(),), near_duplicates=NearDuplicates(), **settings
    )
    return build_corpus(config, folder)


def test_many_shards_give_the_corpus_that_few_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    things = ("dog", "cat", "car", "tree", "boat", "house")
    lines = [
        f"http://pics.example/{number}\ta {things[number % 6]} and a {things[number % 5]} at number {number // 3} of our road"
        for number in range(600)
    ]
    (tmp_path / "links.tsv").write_text("\n".join(lines))
    whole = build(tmp_path / "whole", tmp_path / "links.tsv", shards=7)
    assert not list((tmp_path / "whole" / "_build").glob("*/spread/_done"))
    for module, name, value in (
        (partition, "FAN_OUT", 2),
        (partition, "BLOCK_ROWS", 150),
        (read_pass, "BLOCK_ROWS", 150),
        (index, "MERGED_AT_ONCE", 2),
        (index, "RUN_ROWS", 10),
        (corpus, "TALLIES_AT_ONCE", 2),
    ):
        monkeypatch.setattr(module, name, value)
    stepwise = build(tmp_path / "stepwise", tmp_path / "links.tsv", shards=7)
    spread = {path.parent.parent.name for path in (tmp_path / "stepwise" / "_build").glob("*/spread/_done")}
    assert spread == {"read", "sign", "near"}
    assert len(list((tmp_path / "stepwise" / "_build" / "merged").iterdir())) == 2
    assert whole["dropped"]["near_duplicate"] > 100
    assert stepwise == whole


def test_a_source_tells_the_number_of_its_shards(tmp_path: Path) -> None:
    (tmp_path / "links.tsv").write_text("http://pics.example/1\ta dog on a lawn\nhttp://pics.example/2\ta cat on a lawn\n")
    assert build(tmp_path / "corpus", tmp_path / "links.tsv")["shards"] == FEWEST_SHARDS
    assert len(list((tmp_path / "corpus" / "kept").iterdir())) == FEWEST_SHARDS
    parts = [Part(path="links.tsv", kind="tsv", rows_hint=ROWS_PER_SHARD) for _ in range(100)]
    assert shards_for(parts) == 100
    assert shards_for([*parts, Part(path="more.tsv", kind="tsv")]) == 101
