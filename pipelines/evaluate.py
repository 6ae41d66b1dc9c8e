"""Trained methods in, the table of zero-shot mIoU out: eight benchmarks, one protocol, pictures of the best and the worst."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.evaluate import FORMAT, Contender, draw, evaluate, fingerprint_of
from cluster.tracking import Run
from filtering.stage import digest_of, write_json
from owseg.evaluation.datasets import averaged, list_items
from owseg.evaluation.presets import OVERRIDES, EvaluateConfig, protocol_of, summary_of
from owseg.evaluation.run import Score, report
from owseg.methods import TrainedConfig
from pipelines.benchmark_check import check
from pipelines.checks import check_benchmarks, check_encoder, check_methods, check_weights, located_model
from pipelines.cli import main
from pipelines.config import to_dict
from pipelines.context import Context, Result, open_context
from pipelines.settings import Config
from pipelines.train import run_to_train, trained_encoder, weights_of
from pipelines.world import evaluate_config

SETTINGS = ("mode", "templates", "unit_prompts", "pamr", "kp_weight", "top_classes")
"""Settings of a method that decide on its numbers at inference, told beside its row (the background threshold apart)."""
TOLD = 5
"""Unreadable images that are named below the table; the JSON files name all."""
METRICS = ("mIoU", "fwIoU", "pixel_accuracy", "boundary_IoU", "seconds_per_image")
DIGITS = {"seconds_per_image": 3}


def run_evaluate(context: Context) -> Result:
    """The evaluate stage: `evaluate/` in the run's folder, with a JSON of per-class scores and pictures for each method."""
    out = context.run_dir / "evaluate"
    config = evaluate_config(context)
    encoder = trained_encoder(context)
    contenders = [
        Contender(
            name=name,
            method=(model := located_model(context.config, name)),
            encoder=encoder,
            weights=weights_of(context, name) if isinstance(model, TrainedConfig) else None,
        )
        for name in context.config.methods
    ]

    def work() -> Result:
        scores = evaluate(contenders, config, context.config.session, out, use_gpu=context.config.train.use_gpu)
        miou: dict[str, dict[str, float]] = {}
        averages: dict[str, dict[str, float]] = {}
        for contender in contenders:
            with context.tracker.child(f"evaluate {contender.name}", stage="evaluate") as run:
                row = scores[contender.name]
                reports = _publish(run, contender, config, row, out)
                miou[contender.name], averages[contender.name] = _table_row(reports)
                run.metrics({"average/mIoU": miou[contender.name]["average"]})
                if config.pictures:
                    draw([contender], scores, config, out / "pictures")
                    run.artifact(out / "pictures" / contender.name, "pictures")
        for name, values in miou.items():
            context.tracker.metrics({f"{name}/{dataset}/mIoU": value for dataset, value in values.items()})
        first = scores[contenders[0].name]
        return {
            "mIoU": miou,
            "averages": averages,
            "protocol": summary_of(config),
            "settings": {contender.name: settings_of(contender, config, scores[contender.name]) for contender in contenders},
            "images": {name: len(score.images) for name, score in first.items()},
            "skipped": {name: sorted(score.skipped) for name, score in first.items() if score.skipped},
            "digest": digest_of(miou),
        }

    result = context.stage("evaluate", _fingerprint(context, config, contenders), out, work)
    print_table(result, config.datasets)
    if config.pictures:
        print(f"pictures: {out / 'pictures'}")
    return result


def settings_of(contender: Contender, config: EvaluateConfig, scores: dict[str, Score]) -> str:
    """What decides on a row's numbers beside weights and protocol: "templates tcl, pamr off, background 0.5"."""
    given = {key.replace("_", " "): getattr(contender.method, key) for key in SETTINGS if hasattr(contender.method, key)}
    told = [f"{key} {('off', 'on')[value] if isinstance(value, bool) else value}" for key, value in given.items()]
    if thresholds := _thresholds(contender, config, scores):
        kind = "background probability" if config.preset == "sclip" else "background"
        told.append(f"{kind} {'/'.join(f'{value:g}' for value in thresholds)}")
    return ", ".join(told)


def _thresholds(contender: Contender, config: EvaluateConfig, scores: dict[str, Score]) -> list[float]:
    """What decides on background: the evaluator's constants; of a method that decides it itself, the values it goes by."""
    constants = {score.threshold for score in scores.values() if score.threshold is not None}
    with_background = [name for name in scores if protocol_of(config, name).benchmark.background]
    own = [getattr(contender.on(name).method, "background_threshold", None) for name in with_background]
    return sorted(constants or {value for value in own if value is not None})


def _fingerprint(context: Context, config: EvaluateConfig, contenders: list[Contender]) -> str:
    """Changes with the rows, the protocol and the benchmark files (names, sizes, times)."""
    protocols = {name: protocol_of(config, name) for name in config.datasets}
    listed = {name: list_items(protocol.benchmark, config.folder) for name, protocol in protocols.items()}
    files = {name: fingerprint_of(items[: config.limit or None]) for name, items in listed.items()}
    rows = [[contender.name, contender.fingerprint()] for contender in contenders]
    texts = {name: asdict(protocol) for name, protocol in protocols.items()}  # lists of names may change under one path
    return digest_of([FORMAT, rows, to_dict(context.config.evaluate), texts, files])


def _publish(run: Run, contender: Contender, config: EvaluateConfig, scores: dict[str, Score], out: Path) -> dict[str, Result]:
    """Write a method's JSON files and log them; returns them by dataset."""
    run.tags({"model": contender.name, "preset": config.preset})
    run.params({"protocol": summary_of(config), "settings": settings_of(contender, config, scores)})
    run.params({key: getattr(config, key) or "the preset's" for key in OVERRIDES})
    reports: dict[str, Result] = {}
    per_class: list[dict[str, Any]] = []
    for name in config.datasets:
        scored = reports[name] = report(protocol_of(config, name), config, scores[name])
        scored["settings"] = settings_of(contender, config, {name: scores[name]})
        write_json(out / contender.name / f"{name}.json", scored)
        run.metrics({f"{name}/{metric}": scored[metric] for metric in METRICS})
        per_class += [
            {"dataset": name, "class": class_, "IoU": iou, "boundary_IoU": scored["boundary_IoU_by_class"][class_]}
            for class_, iou in scored["IoU"].items()
        ]
    run.table(per_class, "per_class.json")
    run.dataset("benchmarks", source=config.root, digest=digest_of(to_dict(config)), context="evaluation")
    return reports


def _table_row(reports: dict[str, Result]) -> tuple[dict[str, float], dict[str, float]]:
    """mIoU by dataset with the plain mean of `averaged` as "average", and the plain means of the other scores."""
    counted = [reports[name] for name in averaged([*reports])]
    means = {metric: float(np.mean([scored[metric] for scored in counted])) for metric in METRICS}
    return {name: scored["mIoU"] for name, scored in reports.items()} | {"average": means.pop("mIoU")}, means


def print_table(result: Result, datasets: Sequence[str]) -> None:
    """The results: mIoU by method and benchmark; then the other scores' averages beside each row's settings."""
    print(f"zero-shot mIoU (%), {result['protocol']}")
    table = Table("method")
    for dataset in [*datasets, "average"]:
        table.add_column(dataset, justify="right")
    for name, row in result["mIoU"].items():
        table.add_row(name, *(f"{row[dataset]:.1f}" for dataset in [*datasets, "average"]))
    others = Table("averages of")
    for metric in METRICS[1:]:
        others.add_column(metric.replace("_", " "), justify="right")
    others.add_column("settings")
    for name, means in result["averages"].items():
        others.add_row(
            name, *(f"{means[metric]:.{DIGITS.get(metric, 1)}f}" for metric in METRICS[1:]), result["settings"][name]
        )
    console = Console()
    Console(width=max(console.width, 120) if not console.is_terminal else None).print(table, others)
    for dataset, ids in result["skipped"].items():
        left_out = f"{', '.join(ids[:TOLD])}{', ...' if len(ids) > TOLD else ''}"
        print(f"{dataset}: {len(ids)} of {len(ids) + result['images'][dataset]} images left out, unreadable: {left_out}")


def run(config: Config) -> None:
    """The verb; stages before it that are not complete run first."""
    check_encoder(config)
    check_methods(config)
    check_weights(config)
    check_benchmarks(config)
    with open_context(config) as context:
        run_to_train(context)
        run_evaluate(context)


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or "", flags={"--check": check}))
