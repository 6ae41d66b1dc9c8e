"""The download as a stage of a run, on Ray against a real server: done once, again where that may help, and recorded."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.session import SessionConfig, close_session
from cluster.tracking import TrackingConfig
from filtering import InputError
from filtering.captions.corpus import FilterConfig
from filtering.captions.reader import SourceConfig
from filtering.images.download import DownloadConfig
from filtering.images.fetch_config import FetchConfig
from filtering.images.image_config import ImageConfig
from filtering.images.progress import conclude, describe
from filtering.images.results import Retry
from helpers.download_web import Web
from helpers.downloads import pages, write_corpus
from helpers.tracked import client_of, runs_of
from pipelines.app.context import SUMMARY, Result, open_context
from pipelines.app.settings import Config
from pipelines.download import run as run_verb
from pipelines.download import run_download
from pipelines.full import run as run_full

GOOD = [f"/image?seed={seed}" for seed in range(10)]
GONE = ["/status/404", "/status/410?x"]
ILL, REFUSED = "/heal?times=1", "/robots?tag=noai"
REPORT = ("report.html", "report.json", "report.png")


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    yield
    close_session()


def config_for(web: Web, run_dir: Path, *, tracked: bool = False) -> Config:
    fetch = FetchConfig(connect_to=web.connect_to, attempts=1, timeout=10.0)
    return Config(
        run_dir=str(run_dir),
        filter=FilterConfig(source=SourceConfig(path="the corpus is there already")),
        download=DownloadConfig(fetch=fetch, image=ImageConfig(image_size=48), shard_size=8),
        session=SessionConfig(num_cpus=2, object_store_mb=100, data_workers=1),
        tracking=TrackingConfig(enabled=tracked),
    )


def download(config: Config, retry: Retry) -> Result:
    with open_context(config) as context:
        return run_download(context, {"digest": "the corpus"}, retry)


def test_what_is_asked_again_when(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", pages(*GOOD, *GONE, ILL, REFUSED), files=1)
    config = config_for(web, tmp_path)

    def again(retry: Retry, config: Config = config) -> tuple[Result, Counter[str]]:
        before = web.requests.copy()
        result = download(config, retry)
        assert json.loads((tmp_path / SUMMARY).read_text())["stages"]["download"] == result
        return result, web.requests - before

    first, asked = again("none")
    assert (first["status"], first["links"], first["success"], first["retryable"]) == ("done", 14, 10, 1)
    assert asked == dict.fromkeys([*GOOD, *GONE, ILL, REFUSED], 1)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "shards: 10 of 14 images obtained (71.4%); failed: permanent 2 (http_404 1, http_410 1), transient 1 (http_500 1), "
        f"policy 1 (opt_out 1); report: {tmp_path / 'shards' / 'report.html'}",
        "shards: 1 may work another day; this asks for them alone: "
        f"python pipelines/download.py --config {tmp_path / 'config.yaml'}",
    ]

    result, asked = again("none")
    assert (result["status"], result["digest"], asked) == ("skipped", first["digest"], {})

    healed, asked = again("transient", replace(config, download=replace(config.download, fetch=patient(config))))
    assert (healed["status"], healed["success"], healed["retryable"], asked) == ("done", 11, 0, {ILL: 1})
    assert healed["digest"] != first["digest"]
    assert json.loads((tmp_path / "shards" / "report.json").read_text())["obtained"] == 11

    result, asked = again("transient")
    assert (result["status"], result["digest"], asked) == ("skipped", healed["digest"], {})

    result, asked = again("permanent")
    assert (result["status"], result["digest"]) == ("done", healed["digest"])  # what comes after is complete
    assert asked == dict.fromkeys([*GONE, REFUSED], 1)


def patient(config: Config) -> FetchConfig:
    return replace(config.download.fetch, timeout=15.0, attempts=2, per_host=2)


def test_a_start_that_died_before_its_report_is_made_good_without_a_request(web: Web, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", pages(*GOOD), files=1)
    config = config_for(web, tmp_path)
    first = download(config, "none")
    report = {name: (tmp_path / "shards" / name).read_bytes() for name in REPORT}
    asked = web.requests.total()
    for path in [tmp_path / "download.done.json", *(tmp_path / "shards" / name for name in REPORT)]:
        path.unlink()
    again = download(config, "none")
    assert (again["status"], again["digest"], web.requests.total()) == ("done", first["digest"], asked)
    assert {name: (tmp_path / "shards" / name).read_bytes() for name in REPORT} == report


def test_the_records_tell_what_the_report_tells(web: Web, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", pages(*GOOD, *GONE, ILL, REFUSED), files=1)
    config = config_for(web, tmp_path, tracked=True)
    first = download(config, "none")
    second = download(config, "transient")
    client, run = client_of(tmp_path), runs_of(tmp_path)["download"]
    assert {
        "links": 14,
        "success": 11,
        "success_share": 11 / 14,
        "retryable": 0,
        "bytes": second["bytes"],
        "status/http_404": 1,
        "failure/permanent": 2,
        "failure/transient": 0,
        "failure/policy": 1,
    }.items() <= run.data.metrics.items()
    assert {*REPORT, "hosts.json"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    datasets = {(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs}
    for result in (first, second):
        assert [name for name, digest in datasets if result["digest"].startswith(digest)] == ["shards"]


@pytest.mark.parametrize("verb", [run_verb, run_full])
def test_a_wrong_target_is_told_before_anything_is_done(tmp_path: Path, verb: Callable[[Config], None]) -> None:
    config = Config(
        run_dir=str(tmp_path), download=DownloadConfig(target="foo://shards"), tracking=TrackingConfig(enabled=False)
    )
    with pytest.raises(InputError, match=r"^download\.target: "):
        verb(config)
    assert not list(tmp_path.iterdir())


def test_a_download_in_a_few_words() -> None:
    assert describe({}) == describe({"bytes": 0, "links": 0}) == ""
    counts = {"links": 4, "bytes": 1_234_567, "status/success": 61, "status/http_404": 20, "status/dns_unknown": 13}
    assert describe(counts) == "65% obtained, 1.2 MB, most often http_404 21%, dns_unknown 14%"
    assert describe({"status/success": 3, "bytes": 999}) == "100% obtained, 999 B"
    assert describe({"status/success": 1, "bytes": 999_700}) == "100% obtained, 1000 kB"
    assert conclude({"success": 5}) == "5 of 5 images obtained (100.0%); failed: none"
    several = {"success": 90, "http_404": 4, "http_403": 1, "not_an_image": 1, "bad_url": 2, "tls": 1, "too_small": 1}
    assert conclude(several) == (
        "90 of 100 images obtained (90.0%); "
        "failed: permanent 8 (http_404 4, bad_url 2, http_403 1, ...), transient 1 (tls 1), policy 1 (too_small 1)"
    )
