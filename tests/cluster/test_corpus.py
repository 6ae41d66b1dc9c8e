"""The corpus on Ray: the same bytes with 1, 2 and 8 workers, from shuffled files, and after a kill half way."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.data import run_on_ray
from cluster.session import SessionConfig, close_session
from filtering.captions.corpus import build_corpus
from helpers.chain import kill_when, processes_of_session, run_well, summary, wait_for
from helpers.corpora import bytes_of, config_for, write_links
from helpers.files import files_under


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    yield
    close_session()


@pytest.mark.parametrize("workers", [2, *(pytest.param(workers, marks=pytest.mark.slow) for workers in (1, 8))])
def test_the_number_of_workers_and_the_order_of_files_change_nothing(tmp_path: Path, workers: int) -> None:
    lines = write_links(tmp_path / "links.tsv", rows=2000)
    config = replace(config_for(tmp_path / "links.tsv"), shards=8, tagged_sample=700)
    straight = build_corpus(config, tmp_path / "straight")
    folder = tmp_path / "links"
    folder.mkdir()
    for part in range(workers):  # dealt to as many files, in another order
        (folder / f"{part}.tsv").write_text("\n".join(lines[::-1][part::workers]))
    spread = replace(config, source=replace(config.source, path=str(folder)))
    session = SessionConfig(num_cpus=workers, object_store_mb=100, data_workers=workers)
    assert build_corpus(spread, tmp_path / "ray", run=run_on_ray(session)) == straight
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "straight")


@pytest.mark.slow  # without Ray, tests/filtering/captions/test_corpus_resume.py kills in every pass
@pytest.mark.parametrize("label", ["mark", "split"])
def test_a_kill_half_way(tmp_path: Path, label: str) -> None:
    write_links(tmp_path / "links.tsv", rows=2000)
    settings = (
        f"filter.source.path={tmp_path / 'links.tsv'}",
        "filter.shards=24",
        "filter.min_count=2",
        "tracking.enabled=false",
    )
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    markers = killed / "corpus" / ("_build/mark/_done" if label == "mark" else "_done")
    process = kill_when(lambda: len(list(markers.glob("*.json"))) >= 6, "filter", killed, *settings, group=True)
    finished = {path.name: path.stat().st_mtime_ns for path in markers.glob("*.json")}
    assert len(finished) < 24, "the kill came too late to test anything"
    wait_for(lambda: not processes_of_session(process), lambda: True, f"the killed run's processes to end: {process}")
    run_well("filter", killed, *settings)
    run_well("filter", straight, *settings)
    for name, written in finished.items():  # what was finished is not done again
        assert (markers / name).stat().st_mtime_ns == written
    assert files_under(killed / "corpus", "*.parquet", "kept/*", "dropped/*", "report.*") == files_under(
        straight / "corpus", "*.parquet", "kept/*", "dropped/*", "report.*"
    )
    assert summary(killed)["stages"]["filter"]["digest"] == summary(straight)["stages"]["filter"]["digest"]
