"""Whatever is printed, by whomever, shows no secrets; whatever is written as the run's config neither."""

import json
import logging
import sys
from pathlib import Path

import pytest

from cluster.tracking import NullTracker
from pipelines.app import context
from pipelines.app.config import load, override
from pipelines.app.context import open_context
from pipelines.app.outcome import exit_code
from pipelines.app.run_dir import digest_of_run, prepare_run_dir
from pipelines.app.settings import Config
from pipelines.app.stage_marker import StageMarker, write_marker
from pipelines.app.values import ConfigError

SECRETS = {
    "tracking.uri": "http://user:hunter2@tracking.test:5000",
    "filter.source.path": "s3://KEY:hunter2@bucket/links/*.parquet",
    "download.target": "https://store.test/shards?X-Amz-Signature=hunter2&X-Amz-Date=1",
    "session.address": "ray://user:hunter2@head.test:10001",
    "encoder.pretrained": "https://user:hunter2@weights.test/clip.pt",
}


def with_secret(folder: Path, secret: str = "hunter2") -> Config:
    settings = [f"{key}={value.replace('hunter2', secret)}" for key, value in SECRETS.items()]
    return override(Config(run_dir=str(folder)), settings)


def test_what_is_printed_or_logged_shows_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        for value in SECRETS.values():
            print(f"looking at {value}", flush=True)
            print(value, file=sys.stderr)
        handler = logging.StreamHandler(sys.stderr)
        handler.emit(logging.makeLogRecord({"msg": SECRETS["tracking.uri"]}))
        raise ConfigError(f"tracking.uri: {SECRETS['tracking.uri']} is not there")

    assert exit_code(work) == 2
    out, err = capfd.readouterr()
    assert "hunter2" not in out + err
    assert err.splitlines()[-1] == "error: tracking.uri: http://user:***@tracking.test:5000 is not there"


def test_a_traceback_shows_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        try:
            raise OSError("no answer from s3://KEY:hunter2@bucket")
        except OSError as error:
            raise RuntimeError("https://hunter2@host/x?sig=hunter2 broke") from error

    assert exit_code(work) == 1
    out, err = capfd.readouterr()
    assert "hunter2" not in out + err


def test_records_of_a_run_hold_no_secret_and_another_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_secret(tmp_path)
    prepare_run_dir(config)
    write_marker(tmp_path, "filter", StageMarker(fingerprint="", digest="", seconds=0.0))
    tracker = NullTracker()
    tracker.uri = config.tracking.uri
    monkeypatch.setattr(context, "open_tracker", lambda *arguments, **keywords: _opened(tracker))
    with open_context(config):
        pass
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["mlflow"]["tracking_uri"] == "http://user:***@tracking.test:5000"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"hunter2" in path.read_bytes()] == []
    assert "s3://KEY:***@bucket/links/*.parquet" in (tmp_path / "config.yaml").read_text()
    prepare_run_dir(with_secret(tmp_path, "another"))  # a new password is the same run
    assert digest_of_run(with_secret(tmp_path, "another")) == digest_of_run(config)
    with pytest.raises(
        ConfigError, match=r"'filter\.source\.path' was s3://KEY:\*\*\*@bucket/links/\*\.parquet and is now s3://x"
    ):
        prepare_run_dir(override(config, ["filter.source.path=s3://x:hunter2@other/"]))


def test_a_masked_secret_is_no_secret(tmp_path: Path) -> None:
    prepare_run_dir(with_secret(tmp_path))
    with pytest.raises(ConfigError, match=r"was copied from a record, where secrets are masked; give it in full"):
        prepare_run_dir(load(Config, tmp_path / "config.yaml", []))


class _opened:  # noqa: N801 -- stands for a function
    def __init__(self, tracker: NullTracker) -> None:
        self.tracker = tracker

    def __enter__(self) -> NullTracker:
        return self.tracker

    def __exit__(self, *error: object) -> None: ...
