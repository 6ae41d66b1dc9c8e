"""The whole chain in its smallest size: what it leaves, that it does nothing twice, that the seed decides the bytes."""

import json
from pathlib import Path

import numpy as np
import pytest

from filtering.files import digest_of_file
from helpers.chain import Chain, run_well, summary
from helpers.files import files_under
from helpers.tracked import client_of, runs_of
from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.intervals import read_image_counts, row_intervals
from owseg.predict import load

METHODS = ("chance", "maskclip", "tcl")
STAGES = ("filter", "download", "train", "evaluate")
COLUMNS = (*BENCHMARKS, "average")


def test_the_summary_keeps_its_contract(chain: Chain) -> None:
    assert list(chain.summary) == ["run_dir", "config_digest", "mlflow", "stages"]
    assert chain.summary["run_dir"] == str(chain.folder)
    assert len(chain.summary["config_digest"]) == 64
    assert chain.summary["mlflow"].keys() == {"tracking_uri", "experiment", "run_id"}
    assert chain.summary["mlflow"]["tracking_uri"] == f"sqlite:///{chain.folder.parent / 'mlflow.db'}"
    stages = chain.summary["stages"]
    assert tuple(stages) == STAGES
    for name in STAGES:
        assert stages[name]["status"] == "done"
        assert stages[name]["seconds"] > 0
        assert len(stages[name]["digest"]) == 64
        assert (chain.folder / stages[name]["output"]).is_dir()


def test_every_link_is_accounted_for(chain: Chain) -> None:
    corpus, shards = chain.summary["stages"]["filter"], chain.summary["stages"]["download"]
    assert corpus["links"] == 320
    assert corpus["kept"] + sum(corpus["dropped"].values()) == corpus["links"]
    assert shards["links"] == corpus["kept"]
    assert sum(shards["by_status"].values()) == shards["links"]
    assert 0 < shards["by_status"]["success"] == shards["success"] < shards["links"]
    assert f"corpus funnel: 320 links → {corpus['kept']} kept → {shards['success']} downloaded" in chain.output


def test_miou_of_every_method_on_every_benchmark_in_percent(chain: Chain) -> None:
    table = chain.summary["stages"]["evaluate"]["mIoU"]
    assert tuple(table) == METHODS
    for row in table.values():
        assert tuple(row) == COLUMNS
        assert all(0 <= value <= 100 for value in row.values())
        assert row["average"] == pytest.approx(sum(row[name] for name in BENCHMARKS) / len(BENCHMARKS))
        assert row["average"] > 1, "a share instead of percent?"
    header = next(line for line in chain.output.splitlines() if "method" in line)
    assert [cell.strip() for cell in header.strip("┃ ").split("┃")] == ["method", *COLUMNS]
    for name, row in table.items():
        line = next(line for line in chain.output.splitlines() if line.startswith(f"│ {name} "))
        *cells, average = [cell.strip() for cell in line.strip("│ ").split("│")][1:]
        assert cells == [f"{row[column]:.1f}" for column in BENCHMARKS]
        low, high = chain.summary["stages"]["evaluate"]["intervals"][name]["average"]
        assert average == f"{row['average']:.1f} ± {(high - low) / 2:.1f}"


def test_intervals_of_every_score_and_of_the_lead_of_the_best_row(chain: Chain) -> None:
    stage = chain.summary["stages"]["evaluate"]
    for name in METHODS:
        row = {dataset: read_image_counts(chain.folder / "evaluate" / name / f"{dataset}.npz") for dataset in BENCHMARKS}
        assert {len(counts.ids) for counts in row.values()} == {10}
        found = {dataset: tuple(ends) for dataset, ends in stage["intervals"][name].items()}
        assert found == row_intervals([row])
        assert tuple(found) == COLUMNS
        scored = json.loads((chain.folder / "evaluate" / name / "voc21.json").read_text())
        assert tuple(scored["mIoU_interval"]) == found["voc21"]
    best = max(METHODS, key=lambda name: stage["mIoU"][name]["average"])
    for other in set(METHODS) - {best}:
        mean, low, high = stage["differences"][f"{best} - {other}"]
        assert mean == pytest.approx(stage["mIoU"][best]["average"] - stage["mIoU"][other]["average"])
        line = f"  {best} - {other} {mean:+.1f} ({low:.1f}..{high:.1f})"
        assert line + ("" if low > 0 else ", not larger than noise") in chain.output.splitlines()


def test_scores_by_class_and_pictures(chain: Chain) -> None:
    table = chain.summary["stages"]["evaluate"]["mIoU"]
    for method in METHODS:
        for dataset in BENCHMARKS:
            scored = json.loads((chain.folder / "evaluate" / method / f"{dataset}.json").read_text())
            assert scored["mIoU"] == pytest.approx(table[method][dataset])
            assert len(scored["IoU"]) > 1
            for rank in ("best", "median", "worst"):
                picture = chain.folder / "evaluate" / "pictures" / method / f"{dataset}-{rank}.png"
                assert picture.read_bytes().startswith(b"\x89PNG")


def test_mlflow_holds_one_parent_with_a_run_for_each_stage_and_method(chain: Chain) -> None:
    where, runs = chain.summary["mlflow"], runs_of(chain.folder)
    parent = runs[chain.folder.name]
    assert parent.info.run_id == where["run_id"]
    stages = {"filter", "download", "train clip", "train tcl", *(f"evaluate {name}" for name in METHODS)}
    assert runs.keys() == {chain.folder.name, *stages}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    table = chain.summary["stages"]["evaluate"]["mIoU"]
    for name in METHODS:
        metrics = runs[f"evaluate {name}"].data.metrics
        for column, miou in table[name].items():
            key = "average_of_8" if column == "average" else column
            assert metrics[f"mIoU/{key}"] == parent.data.metrics[f"mIoU/{name}/{key}"] == pytest.approx(miou)
            low, high = chain.summary["stages"]["evaluate"]["intervals"][name][column]
            assert (metrics[f"mIoU_low/{key}"], metrics[f"mIoU_high/{key}"]) == pytest.approx((low, high))
    assert runs["train tcl"].data.metrics["train/loss/total"] > 0
    assert parent.data.params["method_settings.tcl.optim.batch_size"] == "8"
    assert runs["train tcl"].data.params["optim.batch_size"] == "8"
    assert parent.data.metrics["corpus/kept"] == chain.summary["stages"]["filter"]["kept"]
    assert any(key.startswith("leakage/") for key in parent.data.metrics)
    for run in runs.values():
        assert run.data.tags["config_digest"] == chain.summary["config_digest"]
        assert run.data.tags["mlflow.source.name"] == "pipelines/full.py"
        assert {"mlflow.user", "mlflow.note.content", "python", "torch", "ray", "mlflow", "host"} <= run.data.tags.keys()
    assert "| tcl | " in parent.data.tags["mlflow.note.content"]


def test_lineage_leads_from_the_corpus_to_the_scores_and_back(chain: Chain) -> None:
    runs, client = runs_of(chain.folder), client_of(chain.folder)

    def data(name: str) -> dict[str, str]:
        return {item.dataset.name: item.dataset.digest for item in runs[name].inputs.dataset_inputs}

    assert data("filter")["corpus"] == data("download")["corpus"]
    assert data("download")["shards"] == data("train clip")["shards"] == data("train tcl")["shards"]
    assert data("evaluate tcl").keys() == BENCHMARKS.keys()
    assert len({*data("evaluate tcl").values()}) < len(BENCHMARKS), "voc21 and voc20 have the same files"
    assert data("evaluate tcl") == data("evaluate chance")
    parent = data(chain.folder.name)
    assert parent == {name: data("download")[name] for name in ("corpus", "shards")} | data("evaluate tcl")
    tags = {name: run.data.tags for name, run in runs.items()}
    assert tags["download"]["filter_run"] == runs["filter"].info.run_id
    assert tags["train tcl"]["download_run"] == runs["download"].info.run_id
    assert tags["evaluate tcl"]["train_run"] == runs["train tcl"].info.run_id
    (made,) = runs["train tcl"].outputs.model_outputs
    assert [model.model_id for model in client.get_run(runs["evaluate tcl"].info.run_id).inputs.model_inputs] == [made.model_id]
    model = client.get_logged_model(made.model_id)
    assert model.source_run_id == runs["train tcl"].info.run_id
    assert model.tags["digest"] == digest_of_file(Path(model.tags["weights"]))
    assert {metric.dataset_name for metric in model.metrics if metric.key.startswith("mIoU/")} == {None, *BENCHMARKS}
    assert f"/runs/{runs['download'].info.run_id}?" in tags["train tcl"]["mlflow.note.content"]


def test_tables_confusions_and_pictures_of_a_method_can_be_compared_with_anothers(chain: Chain) -> None:
    runs, client = runs_of(chain.folder), client_of(chain.folder)
    shown = {}
    for name in METHODS:
        run_id = runs[f"evaluate {name}"].info.run_id
        table = json.loads(Path(client.download_artifacts(run_id, "per_class.json")).read_text())
        classes = [row[table["columns"].index("class")] for row in table["data"]]
        assert len({*classes}) == len(classes)
        assert "voc21: background" in classes
        confusions = {item.path for item in client.list_artifacts(run_id, "confusion")}
        assert confusions == {f"confusion/{dataset}.csv" for dataset in BENCHMARKS}
        images = [item.path.split("/")[1].partition("+")[0] for item in client.list_artifacts(run_id, "images")]
        shown[name] = {*images} - {"threshold_sweep"}  # methods without a threshold have none
    assert shown["tcl"] == shown["maskclip"] == shown["chance"] >= {"worst~voc21", "confusion~ade20k"}


def test_the_run_folder_is_enough_to_segment_with(chain: Chain) -> None:
    model = load(chain.folder)
    assert (model.checkpoint.method.name, model.checkpoint.view.window) == ("tcl", 64)
    assert model.segment(np.zeros((50, 70, 3), np.uint8), ["cat", "sky"]).labels.shape == (50, 70)


def test_a_second_run_does_no_work(chain: Chain) -> None:
    before = files_under(chain.folder, "corpus/**/*", "shards/**/*", "train/**/*", "evaluate/**/*")
    how = (
        "train.log_every=3",
        "train.threads=2",
        "train.checkpoint_every=7",
        "evaluate.window_batch=2",
        "download.fetch.timeout=9",
    )
    output = run_well("full", chain.folder, "session.address=127.0.0.1:1", *how)  # where no Ray answers: none is asked for
    again = summary(chain.folder)
    for name in STAGES:
        assert f"{name}: skipped, complete already" in output
        assert again["stages"][name]["status"] == "skipped"
        assert again["stages"][name]["digest"] == chain.summary["stages"][name]["digest"]
    assert again["stages"].keys() == chain.summary["stages"].keys()
    assert again["stages"]["evaluate"]["mIoU"] == chain.summary["stages"]["evaluate"]["mIoU"]
    assert again["mlflow"] == chain.summary["mlflow"]
    assert files_under(chain.folder, "corpus/**/*", "shards/**/*", "train/**/*", "evaluate/**/*") == before


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run_well("download", other, "session.data_workers=1", "tracking.enabled=false")
    patterns = ("corpus/kept/*.parquet", "corpus/dropped/*.parquet", "corpus/entities.parquet", "shards/*.tar")
    assert files_under(other, *patterns) == files_under(chain.folder, *patterns)
    for name in ("filter", "download"):
        assert summary(other)["stages"][name]["digest"] == chain.summary["stages"][name]["digest"]
