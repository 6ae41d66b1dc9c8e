"""What `lineage` says where a run's files hold something else than this program writes: the file, and all the rest."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering.link_set import FORGOTTEN, LinkSet, read_links
from helpers import tiny
from helpers.tar_files import samples, write
from owseg import InputError
from owseg.encoders import PRETRAIN
from owseg.fit import WEIGHTS
from owseg.methods import Methods
from pipelines import lineage
from pipelines.app.run_dir import prepare_run_dir
from pipelines.app.settings import Config
from pipelines.lineages.look_up import RECORD
from pipelines.lineages.places import downloaded
from pipelines.lineages.trainings import Training
from pipelines.train import job_of
from storage.indexes import indexes_of, read
from storage.tar_index import index_path, read_header

WRONG = ("", "{", "[]", "null", "{}", "[" * 100_000)
LEDGER = {"step": 6, "since": 0, "epochs": [{"schedule": 0, "epoch": 0, "samples": 20, "digest": "0"}]}
PAST = {
    "name": "http://a.test/past",
    "corpus": [],
    "download": [],
    "places": [{"tar": "00000.tar", "sample": 3}],
    "trainings": [],
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run that is there."""
    made = Config(
        run_dir=str(tmp_path / "run"),
        encoder=tiny.encoder_config(tmp_path),
        methods=("ovsegmentor",),
        method_settings=Methods(ovsegmentor=tiny.ovsegmentor_config(4, 2)),
    )
    prepare_run_dir(made)
    return made


@pytest.fixture
def training(config: Config) -> Training:
    """One that has taken six steps, with weights and a checkpoint of five."""
    method = config.method_settings.ovsegmentor
    job = job_of(config, method, replace(config.encoder, pretrained=PRETRAIN), Path(config.run_dir))
    (job.out / "checkpoint").mkdir(parents=True)
    (job.out / WEIGHTS).touch()
    (job.out / "checkpoint" / "position.json").write_text('{"step": 5}')
    job.ledger.write_text(json.dumps(LEDGER))
    return Training(job, Path(config.run_dir))


def again(training: Training) -> Training:
    """The same, to be read anew."""
    return Training(training.job, training.run_dir)


LEDGERS = [
    *WRONG,
    *(json.dumps(LEDGER | {key: value}) for key in ("step", "since", "epochs") for value in (None, "x", [1], {})),
]
LEDGERS += [json.dumps(LEDGER | {"step": float("nan")}), json.dumps(LEDGER | {"epochs": [{"schedule": 0}]})]


def test_a_damaged_ledger(training: Training) -> None:
    for text in LEDGERS:
        training.job.ledger.write_text(text)
        saw = again(training).saw(frozenset(["key"]))
        assert saw is not None
        assert saw.unknown.startswith(f"{training.job.ledger}: is damaged ("), text[:60]
        steps = {one.path: one.steps for one in saw.checkpoints}
        assert steps == {"train/ovsegmentor/checkpoint": 5, f"train/ovsegmentor/{WEIGHTS}": 5}


def test_a_damaged_checkpoint(training: Training) -> None:
    """The others are told of, and it is named."""
    position = training.job.out / "checkpoint" / "position.json"
    for text in (*WRONG, '{"step": "x"}', '{"step": NaN}', '{"step": []}'):
        position.write_text(text)
        found = again(training)
        assert [path for path, _ in found.checkpoints] == [f"train/ovsegmentor/{WEIGHTS}"]
        assert found.steps == 6
        [line] = found.left_out
        assert line.startswith(f"{position}: is damaged ("), text[:60]
    saw = found.saw(frozenset(["key"]))
    assert saw is not None
    assert saw.left_out == [line]


@pytest.fixture
def ask(config: Config, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """The verb's JSON, or with `code` none, and what it says on standard error."""

    def run(*words: str, code: int = 0) -> tuple[Any, str]:
        capsys.readouterr()
        assert lineage.main([*words, f"run_dir={config.run_dir}", "--json"]) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return json.loads(out) if not code else None, err

    return run


DAMAGES = (b'{"day": "2026-01-01", "ans', b"[]", b"null", b"\xff", b'{"day": 1}', b'{"day": "x", "answer": {}}', b"[" * 100_000)


@pytest.mark.parametrize("line", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_record_keeps_nobody_from_being_forgotten(
    config: Config, ask: Callable[..., tuple[Any, str]], tmp_path: Path, line: bytes
) -> None:
    """The lines that are whole count, the damaged one is named and stays where it is."""
    folder = Path(config.run_dir)
    past = json.dumps({"day": "2026-01-01", "answer": PAST}).encode()
    (folder / RECORD).write_bytes(past + b"\n\n" + line)
    (tmp_path / "some.txt").write_text("http://a.test/now")
    _, told = ask("--forget", str(tmp_path / "some.txt"))
    assert told.startswith(f"{folder / RECORD}: line 3: is damaged (")
    assert told.count("\n") == 1
    assert read_links(folder / FORGOTTEN).names == ("http://a.test/now",)
    assert (folder / RECORD).read_bytes().startswith(past + b"\n\n" + line + b"\n")
    [before], _ = ask("http://a.test/past")
    [now], told = ask("http://a.test/now")
    assert ([one["day"] for one in before["before"]], len(now["before"]), now["forgotten"]) == (["2026-01-01"], 1, True)
    assert "line 3: is damaged" in told
    listed = (folder / RECORD).read_bytes()
    ask("--forget", str(tmp_path / "some.txt"))
    assert (folder / RECORD).read_bytes() == listed


def test_a_record_that_is_no_file(config: Config, ask: Callable[..., tuple[Any, str]], tmp_path: Path) -> None:
    (Path(config.run_dir) / RECORD).mkdir()
    (tmp_path / "some.txt").write_text("key")
    _, told = ask("--forget", str(tmp_path / "some.txt"), code=2)
    assert f"{RECORD}: is damaged" in told
    assert "move it away" in told


@pytest.mark.parametrize("text", ["[]", "", "{}", "null", "5", "a: [", "\xff"])
def test_settings_that_are_none(config: Config, ask: Callable[..., tuple[Any, str]], text: str) -> None:
    """They are not read as if all of them were the defaults, neither here nor by the next start of the run."""
    folder = Path(config.run_dir)
    (folder / "config.yaml").write_bytes(text.encode("latin-1"))
    _, told = ask("key", code=2)
    assert told.startswith(f"error: {folder / 'config.yaml'}: is damaged (")
    (folder / "filter.done.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run of another config"):
        prepare_run_dir(Config(run_dir=config.run_dir))


@pytest.mark.parametrize("asked", ["", " ", os.fsdecode(b"\xff"), os.fsdecode(b"http://a.test/\xff")])
def test_what_is_no_link_and_no_key(ask: Callable[..., tuple[Any, str]], asked: str) -> None:
    _, told = ask(asked, code=2)
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_a_run_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert lineage.main(["key", "run_dir="]) == 2
    assert "names no folder" in capsys.readouterr().err


def test_a_table_of_other_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["k"], "url": ["u"], "caption_keys": [5]}), tmp_path / "00000.parquet")
    with pytest.raises(InputError, match=r"00000\.parquet: is damaged"):
        downloaded(tmp_path, LinkSet(("k",)))


def test_a_damaged_index_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever the damage is: seen by its length, in its digest, or in what it tells of the samples."""
    tar = write(tmp_path / "00000.tar", samples(2))
    indexes_of([tar])
    whole = index_path(tar).read_bytes()
    at = whole.index(read_header(index_path(tar)).digest)
    for damaged in (b"no index", whole[:-3], whole[:at] + b"!" + whole[at + 1 :], whole[:-3] + b"!" + whole[-2:]):
        index_path(tar).write_bytes(damaged)
        caplog.clear()
        [index] = indexes_of([tar])
        assert read(index).key(1) == "0001"
        [line] = [record.getMessage() for record in caplog.records]
        assert line.startswith(str(index_path(tar)))
        assert index_path(tar).read_bytes() == whole
