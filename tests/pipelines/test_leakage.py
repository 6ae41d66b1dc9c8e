"""What is told of benchmarks is of those that the run evaluates, under their own names; nothing is filtered anew for it."""

import json
from pathlib import Path

import pytest

from cluster.tracking import NullTracker
from filtering import InputError
from filtering.shards import run_local
from miniature.benchmarks import CLASSES, CONTEXT, VOC
from pipelines import filter as filtering_stage
from pipelines.app.cli import DEFAULT_CONFIG
from pipelines.app.config import load, override
from pipelines.app.context import Context, Result
from pipelines.app.evaluated import evaluated_classes, excluded_classes
from pipelines.app.settings import Config
from pipelines.filter import run_filter

CAPTIONS = [
    "a dog near a house",
    "two dogs on the grass",
    "a cat on a chair",
    "a yellow submarine in the sea",
    "an old lighthouse",
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(filtering_stage, "run_on_ray", lambda *_: run_local)
    lines = [f"http://a.test/{number}-{copy}.jpg\t{text} {copy}\n" for number, text in enumerate(CAPTIONS) for copy in range(4)]
    (tmp_path / "links.tsv").write_text("".join(lines))
    (tmp_path / "pets.txt").write_text("void\ndog\ncat, tomcat\n")
    (tmp_path / "sea.txt").write_text("submarine\nlighthouse\nsextant\n")
    return override(
        Config(run_dir=str(tmp_path / "run")),
        [f"filter.source.path={tmp_path / 'links.tsv'}", "filter.rules=[]", "filter.shards=2"],
    )


def scoring(config: Config, name: str) -> Config:
    """`config` that evaluates an own dataset."""
    names = Path(config.filter.source.path).with_name(f"{name}.txt")
    background = ", background: void" if name == "pets" else ""
    return override(config, [f"evaluate.datasets=[{{name: {name}, images: ., labels: ., names: '{names}'{background}}}]"])


def filtered(config: Config) -> tuple[Result, dict[str, tuple[int, int, float]]]:
    """The stage's result, and what its report says of leakage."""
    result = run_filter(Context(config, NullTracker()))
    report = json.loads((Path(config.run_dir) / "corpus" / "report.json").read_text())
    return result, {
        name: (row["in_list"], row["classes"], row["share"]) for name, row in report["leakage"]["benchmarks"].items()
    }


def test_own_datasets_are_what_leaks(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    result, report = filtered(scoring(config, "pets"))
    assert result["leakage"] == {"pets": 0.6}  # 12 of 20 captions name a dog or a cat
    assert report == {"pets": (2, 2, 0.6)}
    capsys.readouterr()
    result, report = filtered(scoring(config, "sea"))  # another list: the corpus stays, the report is of it
    assert result["status"] == "skipped"
    assert result["leakage"] == {"sea": 0.4}
    assert report == {"sea": (2, 3, 0.4)}
    assert "2 of 3" in (Path(config.run_dir) / "corpus" / "report.html").read_text()
    told = capsys.readouterr().out
    assert "filter: skipped, complete already" in told
    assert "filter-report: done" in told


def test_lists_that_are_not_there_are_told_and_stop_nothing(config: Config) -> None:
    """A machine that only filters may lack what evaluation has."""
    lacking = scoring(config, "missing")
    classes, missing = evaluated_classes(lacking)
    assert classes == {}
    assert missing["missing"].startswith("missing.names: ")
    with pytest.raises(InputError, match=r"^filter\.exclude_benchmark_classes: the classes of missing are not known: "):
        excluded_classes(override(lacking, ["filter.exclude_benchmark_classes=true"]))


def test_own_classes_are_left_out_of_the_list(config: Config) -> None:
    result, report = filtered(override(scoring(config, "pets"), ["filter.exclude_benchmark_classes=true"]))
    assert (result["leakage"], report) == ({"pets": 0.0}, {"pets": (0, 2, 0.0)})


def test_the_miniature_worlds_benchmarks_have_names_of_their_own() -> None:
    """Nothing is drawn for it."""
    classes, missing = evaluated_classes(Config())
    assert missing == {}
    assert classes["voc21"] == classes["voc20"] == tuple((name,) for name in VOC)
    assert classes["context60"] == tuple((name,) for name in CONTEXT)
    assert {name: len(found) for name, found in classes.items()} == {
        name: len([word for word in words if word != "background"]) for name, words in CLASSES.items()
    }


@pytest.mark.slow
def test_the_demo_leaks_its_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of built-in names 4 of 20 are in its list, in 24.3 % of its captions."""
    monkeypatch.setattr(filtering_stage, "run_on_ray", lambda *_: run_local)
    _, report = filtered(load(Config, DEFAULT_CONFIG, [f"run_dir={tmp_path}"]))
    in_list, classes, share = report["voc21"]
    assert (in_list, classes, round(share, 3)) == (12, 12, 0.63)


def test_real_benchmarks_have_theirs_also_where_they_are_not_yet(tmp_path: Path) -> None:
    config = override(Config(), [f"evaluate.root={tmp_path / 'nowhere'}", "evaluate.datasets=[voc21, context33]"])
    classes, missing = evaluated_classes(config)
    assert missing == {}
    assert {name: len(found) for name, found in classes.items()} == {"voc21": 20, "context33": 33}


def test_classes_are_not_left_out_for_benchmarks_that_nobody_meant(config: Config) -> None:
    honest = override(config, ["filter.exclude_benchmark_classes=true"])
    with pytest.raises(InputError, match=r"the run's benchmarks are the miniature world's, as evaluate\.root is empty"):
        excluded_classes(honest)
    assert len(excluded_classes(override(honest, ["evaluate.root=/data"]))) == 8
    assert excluded_classes(config) == {}
