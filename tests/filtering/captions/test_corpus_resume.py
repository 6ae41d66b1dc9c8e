"""Building a corpus that is interrupted, killed or begun with another config: it goes on, and ends with the same bytes."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from filtering.captions.balance import Balance
from filtering.captions.corpus import FINDINGS, FilterConfig, build_corpus
from filtering.captions.near_duplicates import NearDuplicates
from filtering.captions.passes import BUILD
from filtering.files import write_json
from filtering.shards import MakeWork, Marker, run_local
from helpers.corpora import bytes_of, config_for, write_links


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


PASSES = ("read 00000", *(f"{label} {shard:05d}" for label in ("mark", "split") for shard in range(4)))


class Whole(NamedTuple):
    """A corpus that was built in one go."""

    config: FilterConfig
    folder: Path
    summary: Mapping[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    write_links(folder / "links.tsv")
    config = config_for(folder / "links.tsv")
    return Whole(config, folder / "corpus", build_corpus(config, folder / "corpus"))


@pytest.mark.parametrize("limit", [0, 1, 3, 7])
def test_interrupted_anywhere_it_goes_on_and_ends_the_same(whole: Whole, tmp_path: Path, limit: int) -> None:
    config = whole.config
    with pytest.raises(KeyboardInterrupt):
        build_corpus(config, tmp_path / "cut", run=Counting(limit))
    rest = Counting()
    assert build_corpus(config, tmp_path / "cut", run=rest) == whole.summary
    assert tuple(rest.done) == PASSES[limit:]
    assert bytes_of(tmp_path / "cut") == bytes_of(whole.folder)
    again = Counting()
    assert build_corpus(config, tmp_path / "cut", run=again) == whole.summary
    assert again.done == []


def test_lost_markers_and_outputs_are_made_again(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    config, out = config_for(tmp_path / "links.tsv"), tmp_path / "corpus"
    whole = build_corpus(config, out)
    before = bytes_of(out)
    (out / "_done" / "00001.done.json").unlink()
    (out / "_build" / "mark" / "_done" / "00002.done.json").unlink()
    (out / "kept" / "00003.parquet").unlink()
    repair = Counting()
    assert build_corpus(config, out, run=repair) == whole
    assert sorted(repair.done) == ["mark 00002", "split 00001", "split 00003"]
    assert bytes_of(out) == before


def test_a_changed_config_does_again_what_depends_on_it(tmp_path: Path) -> None:
    write_links(tmp_path / "links.tsv")
    config, out = config_for(tmp_path / "links.tsv"), tmp_path / "corpus"
    build_corpus(config, out)

    def passes(changed: FilterConfig) -> set[str]:
        runner = Counting()
        assert build_corpus(changed, out, run=runner) == build_corpus(changed, tmp_path / "fresh" / str(len(done)))
        done.append(runner.done)
        return {name.split()[0] for name in runner.done}

    done: list[list[str]] = []
    assert passes(replace(config, top_k=2)) == {"split"}
    assert passes(replace(config, stop_words=("dog",))) == {"mark", "split"}
    assert passes(replace(config, balance=Balance(per_entity=50))) == {"mark", "split"}
    assert passes(replace(config, near_duplicates=NearDuplicates())) == {"sign", "confirm", "split"}
    assert passes(replace(config, shards=2)) == {"read", "mark", "split"}
    assert len(list((out / "kept").glob("*.parquet"))) == len(list((out / "dropped").glob("*.parquet"))) == 2


def test_a_change_that_was_cut_short_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_links(tmp_path / "links.tsv")
    config, out = config_for(tmp_path / "links.tsv"), tmp_path / "corpus"
    build_corpus(config, out)
    before = bytes_of(out)

    def killed_before_the_marker(path: Path, value: object) -> None:
        if path.parent == out / "_done":
            raise KeyboardInterrupt
        write_json(path, value)

    monkeypatch.setattr("filtering.shards.write_json", killed_before_the_marker)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(replace(config, top_k=1), out)
    monkeypatch.undo()
    assert bytes_of(out) != before
    build_corpus(config, out)
    assert bytes_of(out) == before


SCRIPT = """
import os, sys, time
from pathlib import Path
from filtering.captions.corpus import FilterConfig, build_corpus
from filtering.captions.reader import SourceConfig
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


@pytest.mark.parametrize("rename", [3, 13, 30, 45, 55])
def test_kill_minus_nine(whole: Whole, tmp_path: Path, rename: int) -> None:
    """Every file appears by a rename: killed before the n-th one, in whichever pass that is."""
    config, out = whole.config, tmp_path / "corpus"
    command = [sys.executable, "-c", SCRIPT, config.source.path, str(out), str(rename)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / BUILD / FINDINGS).exists()
    finished = len(list(out.rglob("*.done.json")))
    rest = Counting()
    summary = build_corpus(config, out, run=rest)
    assert len(rest.done) == len(PASSES) - finished
    assert summary == whole.summary
    assert bytes_of(out) == bytes_of(whole.folder)
    assert not list(out.rglob("*.tmp"))
