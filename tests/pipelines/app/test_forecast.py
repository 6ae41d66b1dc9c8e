"""What stages will take, from earlier runs' figures, and a disk that is too small told before the work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from filtering import InputError as FilteringInputError
from owseg import InputError
from pipelines.app import forecast, measured
from pipelines.app.cli import CONFIGS, main
from pipelines.app.config import load, to_dict
from pipelines.app.dry_run import dry_run, lines_of
from pipelines.app.forecast import check_disk, forecasts
from pipelines.app.measured import Measured
from pipelines.app.run_files import LocalRun
from pipelines.app.settings import Config
from pipelines.app.values import yaml_of


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The smallest run, in a folder that is there."""
    (tmp_path / "runs" / "new").mkdir(parents=True)
    return load(Config, CONFIGS / "smoke.yaml", [f"run_dir={tmp_path / 'runs' / 'new'}"])


def finished(folder: Path, settings: Config | None = None, **stages: dict[str, Any]) -> Path:
    """A run's folder in which stages are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml_of(to_dict(settings)) if settings else "{}")
    for name, result in stages.items():
        (folder / f"{name}.done.json").write_text(json.dumps({"seconds": 10.0, "result": result}))
    return folder


FILTERED = {"links": 1000, "kept": 500}
LOADED = {"links": 500, "asked": 500, "success": 250}


def test_figures_are_those_of_a_run_beside_it(config: Config) -> None:
    image = replace(config.download.image, image_size=50)
    settings = replace(config, download=replace(config.download, image=image))
    beside = finished(Path(config.run_dir).with_name("old"), settings, filter=FILTERED, download=LOADED)
    (beside / "shards").mkdir()
    (beside / "shards" / "0.tar").write_bytes(bytes(25_000))
    (beside / "train" / "tcl").mkdir(parents=True)
    lines = [json.dumps({"step": step, "samples_per_second": rate}) for step, rate in ((1, 2.0), (2, 8.0), (3, 8.0))]
    (beside / "train" / "tcl" / "metrics.jsonl").write_text("\n".join(lines) + "\n{half")
    found = {step.stage: step for step in forecasts(config, ("filter", "download", "train"), Measured(config.run_dir))}
    links = config.miniature.links
    assert found["filter"].seconds == pytest.approx(links / 100)
    assert found["filter"].count == links / 2
    assert found["download"].seconds == pytest.approx(links / 2 / 50)
    side = config.download.image.image_size
    assert found["download"].bytes == pytest.approx(links / 2 / 2 * 100 * (side / 50) ** 2)
    assert "rate, room and share measured in old" in found["download"].basis
    assert "tcl measured in old" in found["train"].basis
    assert found["train"].seconds is None, "nobody here has trained the smallest run's CLIP"
    tcl = replace(config.method_settings.tcl, pamr=not config.method_settings.tcl.pamr)
    other = replace(config, method_settings=replace(config.method_settings, tcl=tcl))
    (step,) = forecasts(other, ("train",), Measured(config.run_dir))
    assert not any("measured in old" in basis for basis in step.basis), "that one trains with other settings"


def test_a_small_run_says_nothing_of_a_large_one(config: Config) -> None:
    links = config.miniature.links
    runs = Path(config.run_dir).parent
    finished(runs / "alike", filter={"links": links, "kept": links / 2})
    finished(runs / "newest", filter={"links": 3 * links, "kept": links})
    finished(runs / "small", filter={"links": links // 20, "kept": 1})
    (step,) = forecasts(config, ("filter",), Measured(config.run_dir))
    assert step.seconds == pytest.approx(10.0)
    assert step.basis == ("rate and share measured in alike", "room documented")
    (runs / "alike" / "config.yaml").unlink()
    (runs / "newest" / "config.yaml").unlink()
    (step,) = forecasts(config, ("filter",), Measured(config.run_dir))
    assert step.basis == ("rate, room and share documented",)


def test_without_any_run_they_are_the_documented_ones_and_it_says_so(config: Config) -> None:
    first, second = forecasts(config, ("filter", "download"), Measured(config.run_dir))
    assert first.basis == second.basis == ("rate, room and share documented",)
    assert second.count == pytest.approx(config.miniature.links * measured.KEPT_SHARE * measured.OBTAINED_SHARE)
    side = config.download.image.image_size
    assert second.bytes == pytest.approx(second.count * measured.BYTES_PER_PIXEL * side**2)


def test_what_is_complete_takes_nothing_and_its_counts_are_handed_on(config: Config) -> None:
    finished(Path(config.run_dir), filter=FILTERED)
    first, second = forecasts(config, ("filter", "download"), Measured(config.run_dir))
    assert (first.done, first.seconds, first.bytes) == (True, 0.0, 0.0)
    assert second.work == "500 links"
    text = "\n".join(lines_of(config.run_dir, [first, second], 10**12))
    assert "1 filter" in text
    assert "complete already" in text
    assert "does not fit" not in text
    assert "does not fit" in "\n".join(lines_of(config.run_dir, [first, second], 1))


def test_of_complete_scores_only_what_is_new_is_done(config: Config) -> None:
    """A new row is forecast alone; another setting of a row does the whole again, one of a method that is left out does not."""
    own = replace(config, methods=("maskclip", "tcl"))
    finished(
        Path(config.run_dir), own, evaluate={"mIoU": {"maskclip": {}, "tcl": {}}}, train={"methods": {"clip": "", "tcl": ""}}
    )

    def plan(given: Config) -> list[tuple[bool, str]]:
        found = forecasts(given, ("train", "evaluate"), Measured(config.run_dir))
        return [(step.done, step.work.partition(" by ")[2] or step.work) for step in found]

    assert plan(own) == [(True, "clip 4 steps, tcl 6 steps"), (True, "maskclip, tcl")]
    assert plan(replace(own, methods=("maskclip", "tcl", "sclip"))) == [(True, "clip 4 steps, tcl 6 steps"), (False, "sclip")]
    assert plan(replace(own, methods=("tcl", "vilseg")))[0] == (
        False,
        f"vilseg {config.method_settings.vilseg.phases[-1].steps} steps",
    )
    other = replace(own.method_settings, maskclip=replace(own.method_settings.maskclip, background_threshold=0.77))
    assert [done for done, _ in plan(replace(own, method_settings=other))] == [True, False]
    other = replace(own.method_settings, naclip=replace(own.method_settings.naclip, background_threshold=0.77))
    assert [done for done, _ in plan(replace(own, method_settings=other))] == [True, True]
    other = replace(own.method_settings, tcl=replace(own.method_settings.tcl, pamr=not own.method_settings.tcl.pamr))
    assert [done for done, _ in plan(replace(own, seed=config.seed + 1, method_settings=other))] == [False, False]


def test_a_disk_that_is_too_small_is_told_before_the_work(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(Path(config.run_dir), filter=FILTERED)
    check_disk(config, "download")
    monkeypatch.setattr(LocalRun, "free", lambda self: 100)
    with pytest.raises(InputError, match=r"^download: needs about .* for 500 links, and .*/new has 100 B free") as told:
        check_disk(config, "download")
    for cure in ("run_dir=FOLDER", "download.image.image_size", "check_disk=false", "owseg prune"):
        assert cure in str(told.value)
    with pytest.raises(InputError, match=r"^train: needs about"):
        check_disk(config, "train")
    check_disk(replace(config, check_disk=False), "download")
    check_disk(config, "filter-report")


def test_what_lies_there_already_is_not_asked_for_again(config: Config) -> None:
    def room() -> float:
        return list(forecasts(config, ("filter", "download"), Measured(config.run_dir)))[1].bytes

    before = room()
    (Path(config.run_dir) / "shards").mkdir()
    (Path(config.run_dir) / "shards" / "0.tar").write_bytes(bytes(1000))
    assert room() == pytest.approx(before - 1000)


def test_links_of_a_source_are_counted_and_a_wrong_one_is_told(config: Config, tmp_path: Path) -> None:
    (tmp_path / "links.tsv").write_text("".join(f"http://a.example/{n}.jpg\ta dog number {n}\n" for n in range(200)))
    source = replace(config.filter.source, path=str(tmp_path / "links.tsv"))
    given = replace(config, filter=replace(config.filter, source=source))
    assert 150 <= forecast.links_in(given) <= 250
    missing = replace(given, filter=replace(config.filter, source=replace(source, path=str(tmp_path / "none.tsv"))))
    with pytest.raises(FilteringInputError, match=r"none\.tsv"):
        forecast.links_in(missing)


def test_dry_run_checks_everything_and_writes_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Config) -> None:
        raise AssertionError("it was to do nothing")

    def call(*settings: str) -> int:
        argv = ["--config", str(CONFIGS / "smoke.yaml"), f"run_dir={tmp_path / 'runs' / 'dry'}", "--dry-run", *settings]
        return main(run, doc="Does a thing.", argv=argv, flags=dry_run("evaluate"))

    before = sorted(tmp_path.rglob("*"))
    assert call() == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"plan of {tmp_path / 'runs' / 'dry'}; nothing is written\n  1 filter    {config.miniature.links} links"
    )
    assert "clip 4 steps, tcl 6 steps" in out
    assert call("weights.tcl=none.pth") == 2
    assert "none.pth does not exist" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
