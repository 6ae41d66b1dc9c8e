"""The benchmark's table of links: the same bytes every time, rows that are whole, and captions that are like their source."""

from collections import Counter
from pathlib import Path

import captions
import numpy as np
import pytest

from filtering.captions.reader import SourceConfig, read_links

ROWS = 2000


@pytest.fixture(scope="module")
def source() -> list[str]:
    return captions.miniature_captions(0)


@pytest.fixture(scope="module")
def links(source: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "links.tsv"
    captions.write_links(path, ROWS, captions.Captions([source], 0))
    return path


@pytest.fixture(scope="module")
def rows(links: Path) -> list[tuple[str, str]]:
    lines = links.read_text().split("\n")
    assert lines.pop() == ""
    return [(url, caption) for url, caption in (line.split("\t") for line in lines)]


def test_rows_are_whole_and_the_reader_loses_none(links: Path, rows: list[tuple[str, str]]) -> None:
    assert len(rows) == ROWS
    urls = [url for url, _ in rows if url]
    assert len(set(urls)) == len(urls) > 0.99 * ROWS
    assert sum(table.num_rows for table in read_links(SourceConfig(path=str(links)))) == ROWS


def test_a_row_follows_from_sources_seed_and_number_alone(
    source: list[str], links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "BLOCK_ROWS", 300)
    captions.write_links(tmp_path / "longer.tsv", ROWS + 500, captions.Captions([source], 0))
    assert (tmp_path / "longer.tsv").read_bytes().startswith(links.read_bytes())
    captions.write_links(tmp_path / "other.tsv", ROWS, captions.Captions([source], 1))
    assert not set((tmp_path / "other.tsv").read_text().split("\n")) & set(links.read_text().split("\n")) - {""}


def test_some_captions_are_copies_and_no_others_are_alike(source: list[str], rows: list[tuple[str, str]]) -> None:
    copy, near = captions.Captions([source], 0).copies(np.arange(ROWS, dtype=np.uint64))
    assert copy.mean() == pytest.approx(captions.COPIES, rel=0.5)
    assert near.mean() == pytest.approx(captions.NEAR_COPIES, rel=0.5)
    texts = np.array([caption for _, caption in rows])
    own = texts[~copy & ~near]
    assert len(set(own)) == len(own)
    assert np.isin(texts[copy], own).mean() > 0.9  # of others the original was soiled
    assert not np.isin(texts[near], own).any()


def test_the_captions_have_the_words_of_their_source_and_cc12ms_length(source: list[str], rows: list[tuple[str, str]]) -> None:
    words = [caption.split() for _, caption in rows]
    assert 17 < sum(map(len, words)) / ROWS < 24
    assert 0.18 < sum("<PERSON>" in caption for _, caption in rows) / ROWS < 0.32
    here, there = Counter(word for row in words for word in row), Counter(word for text in source for word in text.split())
    for word, count in there.most_common(20):
        if word not in captions.SEAMS.to_pylist():
            assert here[word] / here.total() == pytest.approx(count / there.total(), rel=0.3), word
