"""Trained methods in, the table of zero-shot mIoU out: eight benchmarks, one protocol, pictures of the best and the worst."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.evaluate import Contender, draw, evaluate, fingerprint_of
from cluster.tracking import Run
from filtering.stage import digest_of, write_json
from owseg.evaluation.datasets import list_items
from owseg.evaluation.protocol import EvaluateConfig
from owseg.evaluation.run import Score, benchmark_of, report
from owseg.methods import TrainedConfig
from pipelines.checks import check_benchmarks, check_encoder
from pipelines.cli import main
from pipelines.config import to_dict
from pipelines.context import Context, Result, open_context
from pipelines.download import run_download
from pipelines.filter import run_filter
from pipelines.settings import Config
from pipelines.train import run_train, trained_encoder, weights_of
from pipelines.world import evaluate_config


def run_evaluate(context: Context) -> Result:
    """The evaluate stage: `evaluate/` in the run's folder, with a JSON of per-class scores and pictures for each method."""
    out = context.run_dir / "evaluate"
    config = evaluate_config(context)
    encoder = trained_encoder(context)
    contenders = [
        Contender(
            name=name,
            method=(model := getattr(context.config.models, name)),
            encoder=encoder,
            weights=weights_of(context, name) if isinstance(model, TrainedConfig) else None,
        )
        for name in context.config.methods
    ]

    def work() -> Result:
        scores = evaluate(contenders, config, context.config.session, out, use_gpu=context.config.train.use_gpu)
        miou: dict[str, dict[str, float]] = {}
        for contender in contenders:
            with context.tracker.child(f"evaluate {contender.name}", stage="evaluate") as run:
                row = scores[contender.name]
                miou[contender.name] = _table_row(config, row)
                _publish(run, contender, config, row, miou[contender.name], out)
                if config.pictures:
                    draw([contender], scores, config, out / "pictures")
                    run.artifact(out / "pictures" / contender.name, "pictures")
        for name, values in miou.items():
            context.tracker.metrics({f"{name}/{dataset}/mIoU": value for dataset, value in values.items()})
        return {"mIoU": miou, "images": _images(config), "digest": digest_of(miou)}

    result = context.stage("evaluate", _fingerprint(context, config, contenders), out, work)
    print_table(result["mIoU"], config)
    if config.pictures:
        print(f"pictures: {out / 'pictures'}")
    return result


def _fingerprint(context: Context, config: EvaluateConfig, contenders: list[Contender]) -> str:
    """Changes with the rows, the protocol and the benchmark files (names, sizes, times)."""
    listed = {name: list_items(benchmark_of(name, config), Path(config.root)) for name in config.datasets}
    files = {name: fingerprint_of(items[: config.limit or None]) for name, items in listed.items()}
    rows = [[contender.name, contender.fingerprint()] for contender in contenders]
    return digest_of([rows, to_dict(context.config.evaluate), files])


def _images(config: EvaluateConfig) -> dict[str, int]:
    listed = {name: list_items(benchmark_of(name, config), Path(config.root)) for name in config.datasets}
    return {name: len(items[: config.limit or None]) for name, items in listed.items()}


def _table_row(config: EvaluateConfig, scores: dict[str, Score]) -> dict[str, float]:
    """mIoU in percent by dataset, and their plain mean as "average"."""
    row = {name: float(report(benchmark_of(name, config), scores[name])["mIoU"]) for name in config.datasets}  # type: ignore[arg-type]
    return {**row, "average": float(np.mean(list(row.values())))}


def _publish(
    run: Run, contender: Contender, config: EvaluateConfig, scores: dict[str, Score], row: dict[str, float], out: Path
) -> None:
    """Write a method's per-class JSON files and log them with its mIoU."""
    run.tags({"model": contender.name})
    run.params({key: getattr(config, key) for key in ("short_side", "window", "stride")})
    run.params({"background_threshold": getattr(contender.method, "background_threshold", "none")})
    run.metrics({f"{dataset}/mIoU": value for dataset, value in row.items()})
    per_class: list[dict[str, Any]] = []
    for name in config.datasets:
        scored: dict[str, Any] = report(benchmark_of(name, config), scores[name])
        write_json(out / contender.name / f"{name}.json", scored)
        run.metrics({f"{name}/pixel_accuracy": scored["pixel_accuracy"]})
        per_class += [{"dataset": name, "class": class_, "IoU": iou} for class_, iou in scored["IoU"].items()]
    run.table(per_class, "per_class.json")
    run.dataset("benchmarks", source=config.root, digest=digest_of(to_dict(config)), context="evaluation")


def print_table(miou: dict[str, dict[str, float]], config: EvaluateConfig) -> None:
    """The results table: a row for each method, a column for each benchmark and the average."""
    protocol = f"short side {config.short_side}, window {config.window}, stride {config.stride}"
    table = Table(title=f"zero-shot mIoU (%), {protocol}")
    table.add_column("method")
    for dataset in [*config.datasets, "average"]:
        table.add_column(dataset, justify="right")
    for name, row in miou.items():
        table.add_row(name, *(f"{row[dataset]:.1f}" for dataset in [*config.datasets, "average"]))
    console = Console()
    Console(width=max(console.width, 120) if not console.is_terminal else None).print(table)


def run(config: Config) -> None:
    """The verb; stages before it that are not complete run first."""
    check_encoder(config)
    check_benchmarks(config)
    with open_context(config) as context:
        run_train(context, run_download(context, run_filter(context)))
        run_evaluate(context)


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or ""))
