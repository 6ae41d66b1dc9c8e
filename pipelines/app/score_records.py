"""What MLflow is told of a method's evaluation: its scores on each benchmark's data, tables, confusions and pictures."""

import csv
import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from cluster.evaluate import Contender
from cluster.tracking import Data, Model, Run, RunOf
from filtering.files import digest_of_file
from owseg.evaluation.datasets import averaged
from owseg.evaluation.intervals import AVERAGE, Interval
from owseg.evaluation.pictures import draw_confusion
from owseg.evaluation.protocols import EvaluateConfig, protocol_of, summary_of
from owseg.evaluation.scoring import Score
from pipelines.app.context import Context, Result
from pipelines.app.records import average_name, by_dataset, headline_of
from storage.copies import shown

METRICS = ("mIoU", "fwIoU", "pixel_accuracy", "boundary_IoU", "seconds_per_image", "peak_memory_mb")
ORACLE_METRICS = ("oracle_mIoU", "regions_per_image")
"""With `evaluate.oracle`."""


def child(context: Context, name: str) -> AbstractContextManager[Run]:
    """The run of a method's evaluation."""
    return context.tracker.child(f"evaluate {name}", stage="evaluate")


def begun(run: Run, context: Context, contender: Contender, config: EvaluateConfig) -> Run:
    """Tell a run what is scored, and how; returns it."""
    shards = context.stages.get("download", {}).get("digest", "")
    run.tags(
        {
            "method": contender.name,
            "preset": config.preset,
            "protocol": summary_of(config),
            **({"shards_digest": shards} if shards else {}),
        }
    )
    run.params(headline_of(context.config, "evaluate", contender.name))
    run.model(model_of(contender), made=False)
    run.tags({"train_run": RunOf(f"train {contender.name}")})
    return run


def model_of(contender: Contender) -> Model:
    """The row as MLflow's LoggedModel, by the digest of its weights; of a row without weights by that of its settings."""
    weights = contender.weights
    return Model(
        name=contender.name,
        digest=digest_of_file(weights) if weights else contender.fingerprint(),
        kind=contender.method.name,
        tags={"weights": shown(weights)} if weights else {},
    )


def record_scores(
    run: Run,
    contender: Contender,
    reports: Mapping[str, Result],
    intervals: Mapping[str, Interval],
    data: Mapping[str, Data],
    pictures: Path | None,
) -> None:
    """Record a method's scores by dataset, and of the model and the dataset that they are of; tables and pictures."""
    model = model_of(contender).digest
    for name, scored in reports.items():
        run.dataset(data[name], context="evaluation")
        run.scores({f"{metric}/{name}": scored[metric] for metric in metrics_of(scored)}, model=model, data=data[name])
    for metric in metrics_of(next(iter(reports.values()))):
        run.scores({f"{metric}/{average_name([*reports])}": row_of(reports, metric)[AVERAGE]}, model=model)
    for end in ("low", "high"):
        run.metrics(by_dataset(f"mIoU_{end}", {name: getattr(interval, end) for name, interval in intervals.items()}))
    run.table(
        [
            {"class": f"{name}: {class_}", "IoU": iou, "boundary_IoU": scored["boundary_IoU_by_class"][class_]}
            for name, scored in reports.items()
            for class_, iou in scored["IoU"].items()
        ],
        "per_class.json",
    )
    run.describe(_description(contender, reports))
    for picture in sorted((pictures / contender.name).glob("*.png")) if pictures else ():
        dataset, _, kind = picture.stem.rpartition("-")
        run.image(picture, f"{kind}/{dataset}" if dataset else picture.stem)


def _description(contender: Contender, reports: Mapping[str, Result]) -> str:
    trained = f", trained in [[train {contender.name}]]" if contender.weights else ""
    average = f"**{average_name([*reports]).replace('_', ' ')}**"
    rows = [(name, scored["mIoU"]) for name, scored in reports.items()] + [(average, row_of(reports, "mIoU")[AVERAGE])]
    table = ["| zero-shot | mIoU (%) |", "|---|---:|", *(f"| {name} | {miou:.1f} |" for name, miou in rows)]
    return "\n".join([f"**{contender.name}**{trained}", "", *table])


def draw_confusions(contender: Contender, config: EvaluateConfig, scores: Mapping[str, Score], out: Path) -> None:
    """Draw the confusion on each benchmark beside the pictures of predictions."""
    for name, score in scores.items():
        names = protocol_of(config, name).benchmark.names
        draw_confusion(score.counts, names, out / contender.name / f"{name}-confusion.png", f"{contender.name} on {name}")


def record_confusions(run: Run, config: EvaluateConfig, scores: Mapping[str, Score]) -> None:
    """Record the confusion on each benchmark in numbers of pixels, as CSV: a row for each label."""
    for name, score in scores.items():
        names = protocol_of(config, name).benchmark.names
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["label \\ prediction", *names])
        writer.writerows([label, *row] for label, row in zip(names, score.counts.tolist(), strict=True))
        run.document(text.getvalue(), f"confusion/{name}.csv")


def metrics_of(scored: Result) -> list[str]:
    """The metrics that a report, or the averages of some, have."""
    return [metric for metric in (*METRICS, *ORACLE_METRICS) if metric in scored]


def row_of(reports: Mapping[str, Result], metric: str) -> dict[str, Any]:
    """A metric by dataset, with the plain mean of `averaged` as "average"."""
    row = {name: scored[metric] for name, scored in reports.items()}
    return row | {AVERAGE: float(np.mean([row[name] for name in averaged([*row])]))}
