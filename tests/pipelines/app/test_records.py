"""What MLflow is told of a run: names of averages, the settings that have a say in a stage, the text of a run's page."""

import pytest

from cluster.tracking import NullTracker
from owseg.evaluation.datasets import BENCHMARKS
from pipelines.app.config import override
from pipelines.app.records import average_name, by_dataset, headline_of, record_run, settings_of
from pipelines.app.settings import Config


@pytest.mark.parametrize(
    ("datasets", "name"),
    [
        ([*BENCHMARKS, "average"], "average_of_8"),
        ([*BENCHMARKS, "voc_unseen"], "average_of_8"),
        (["voc21", "ade20k", "average"], "average_of_voc21_ade20k"),
        (["mine"], "average_of_mine"),
    ],
)
def test_an_average_says_of_what_it_is(datasets: list[str], name: str) -> None:
    assert average_name(datasets) == name


def test_scores_of_a_row_are_in_one_section() -> None:
    row = {"voc21": 1.0, "voc20": 3.0, "average": 2.0}
    assert by_dataset("mIoU", row) == {"mIoU/voc21": 1.0, "mIoU/voc20": 3.0, "mIoU/average_of_voc21_voc20": 2.0}


def test_a_stage_has_the_settings_of_its_own_that_are_not_the_defaults() -> None:
    settings = ["seed=3", "train.workers=2", "method_settings.tcl.optim.lr=1e-3", "method_settings.clip.optim.lr=1e-3"]
    config = override(Config(), [*settings, "filter.source.path=s3://KEY:hunter2@bucket/x", "evaluate.bootstrap=500"])
    assert settings_of(config, "train", "tcl") == {"seed": 3, "train.workers": 2, "method_settings.tcl.optim.lr": 1e-3}
    assert settings_of(config, "filter")["filter.source.path"] == "s3://KEY:***@bucket/x"
    assert "" not in settings_of(config, "evaluate", "tcl").values()


def test_what_stands_above_a_runs_pictures_is_little() -> None:
    changed = ["optim.lr=1e-3", "background_threshold=0.2", "area_prior=0.3", "mask_shift=-3.5", "kp_weight=0"]
    config = override(Config(), ["seed=3", "evaluate.bootstrap=500", *(f"method_settings.tcl.{text}" for text in changed)])
    assert headline_of(config, "train", "tcl") == {"optim.lr": 1e-3}
    assert headline_of(config, "evaluate", "tcl") == {"background_threshold": 0.2}


class Page(NullTracker):
    def __init__(self) -> None:
        self.text = ""

    def describe(self, markdown: str) -> None:
        self.text = markdown


def test_the_page_of_a_run_shows_table_funnel_and_links() -> None:
    page = Page()
    stages = {
        "filter": {"links": 100, "kept": 40, "leakage": {"voc21": 0.25, "ade20k": 0.0}, "digest": "c"},
        "download": {"success": 30, "digest": "s"},
        "train": {"methods": {"tcl": "w"}, "digest": "t"},
        "evaluate": {"mIoU": {"tcl": {"voc21": 12.34, "average": 12.34}}, "protocol": "TCL's", "digest": "e"},
    }
    record_run(page, Config(), stages)
    assert page.text.splitlines() == [
        f"**filter → download → train → evaluate** on the miniature world, {Config().miniature.links} links",
        "",
        "| method | voc21 | average of voc21 |",
        "|---|---:|---:|",
        "| tcl | 12.3 | 12.3 |",
        "",
        "Zero-shot mIoU in percent, TCL's.",
        "",
        "Corpus: 100 links → 40 kept → 30 images.",
        "",
        "Leakage (kept captions that name a class): voc21 25.0%",
        "",
        "[[filter]] · [[download]] · [[train tcl]] · [[evaluate tcl]]",
    ]
