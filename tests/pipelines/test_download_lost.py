"""A finished download that lost files is not complete: what is lost is made again, and nothing else; here and at the target."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.tracking import TrackingConfig
from filtering.captions.corpus import FilterConfig
from filtering.captions.reader import SourceConfig
from filtering.shards import run_local
from helpers.download_web import Web
from helpers.downloads import config_for, contents, images, write_corpus
from pipelines import download as verb
from pipelines.app.context import Result, open_context
from pipelines.app.settings import Config

LINKS = 24


@pytest.fixture
def download(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The stage over four shards, without Ray."""
    monkeypatch.setattr(verb, "run_on_ray", lambda *_: run_local)
    write_corpus(tmp_path / "corpus", images(LINKS))

    def run(*, verify: bool = False, target: str = "") -> Result:
        config = Config(
            run_dir=str(tmp_path),
            filter=FilterConfig(source=SourceConfig(path="the corpus is there already")),
            download=replace(config_for(web), target=target),
            tracking=TrackingConfig(enabled=False),
        )
        with open_context(config, verify=verify) as context:
            return verb.run_download(context, {"digest": "the corpus"})

    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "verify", "said"),
    [
        ("00002.tar", Path.unlink, False, "1 of 20 files missing (shards/00002.tar)"),
        ("00002.tar", cut, False, "1 of 20 files of another size (shards/00002.tar)"),
        ("00002.tar", flip, True, "1 of 20 files changed (shards/00002.tar)"),
        ("00001_stats.json", Path.unlink, False, "1 of 20 files missing (shards/00001_stats.json)"),
        ("sizes.json", Path.unlink, False, "1 of 20 files missing (shards/sizes.json)"),
        ("report.html", cut, False, "1 of 20 files of another size (shards/report.html)"),
    ],
)
def test_what_is_lost_is_made_again(
    web: Web,
    tmp_path: Path,
    download: Callable[..., Result],
    capsys: pytest.CaptureFixture[str],
    file: str,
    damage: Callable[[Path], None],
    verify: bool,
    said: str,
) -> None:
    first, shards = download(), tmp_path / "shards"
    whole = contents(shards)
    samples = pq.read_metadata(shards / "00002.parquet").num_rows
    damage(shards / file)
    asked = web.requests.total()
    again = download(verify=verify)
    assert f"download: {said}: made again" in capsys.readouterr().out.splitlines()
    assert (again["status"], again["digest"], again["success"]) == ("done", first["digest"], LINKS)
    assert contents(shards) == whole
    assert (shards / "sizes.json").exists()
    fetched = web.requests.total() - asked
    assert fetched <= samples if file == "00002.tar" else fetched == 0
    assert fetched > 0 or file != "00002.tar"
    assert download(verify=True)["status"] == "skipped"


def test_a_shard_folder_that_was_emptied_is_not_complete(
    web: Web, tmp_path: Path, download: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    download()
    whole = contents(tmp_path / "shards")
    for path in (tmp_path / "shards").glob("*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert (download()["status"], web.requests.total()) == ("done", 2 * LINKS)
    assert "missing (shards/_done/00000.done.json, shards/_done/00001.done.json, " in capsys.readouterr().out
    assert contents(tmp_path / "shards") == whole


def test_what_the_target_lost_is_copied_again(
    web: Web, tmp_path: Path, download: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "there"
    download(target=str(target))
    whole = contents(target)
    assert (whole, web.requests.total()) == (contents(tmp_path / "shards"), LINKS)
    (target / "00003.tar").unlink()
    cut(target / "00001.tar")
    (target / "report.html").unlink()
    assert download(target=str(target))["status"] == "skipped"
    assert (
        "download.target: 2 of 20 files missing (00003.tar, report.html), 1 of another size (00001.tar): copied again"
        in capsys.readouterr().out.splitlines()
    )
    assert contents(target) == whole
    assert (target / "report.html").read_bytes() == (tmp_path / "shards" / "report.html").read_bytes()
    assert web.requests.total() == LINKS
    download(target=str(target))
    assert "copied again" not in capsys.readouterr().out
