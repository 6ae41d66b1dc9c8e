"""Trained methods in, the table of zero-shot mIoU out: eight benchmarks, one protocol, pictures of the best and the worst."""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cluster.evaluate import FORMAT, Contender, draw, evaluate, fingerprint_of
from cluster.tracking import Run
from filtering.files import digest_of, write_json
from owseg import InputError
from owseg.evaluation.convert import read_json
from owseg.evaluation.datasets import averaged, list_items
from owseg.evaluation.intervals import (
    AVERAGE,
    Difference,
    Interval,
    Row,
    difference_intervals,
    read_image_counts,
    row_intervals,
    write_image_counts,
)
from owseg.evaluation.protocols import OVERRIDES, EvaluateConfig, protocol_of, summary_of
from owseg.evaluation.scoring import Score, report
from owseg.fields import shown_settings
from owseg.method_config import TrainableConfig
from owseg.text import told_shortened
from pipelines.app.checks import check_benchmarks, check_encoder, check_methods, check_weights
from pipelines.app.cli import VERIFY, main
from pipelines.app.config import to_dict
from pipelines.app.context import Context, Result, open_context
from pipelines.app.dry_run import dry_run
from pipelines.app.resolve import located_model
from pipelines.app.roles import roles_of
from pipelines.app.settings import Config
from pipelines.app.tables import console_for, print_table
from pipelines.app.world import evaluate_config
from pipelines.benchmark_check import check
from pipelines.train import ensure_trained, trained_encoder, weights_of

MAX_LISTED = 5
"""Unreadable images that are named below the table; the JSON files name all."""
METRICS = ("mIoU", "fwIoU", "pixel_accuracy", "boundary_IoU", "seconds_per_image", "peak_memory_mb")
ORACLE_METRICS = ("oracle_mIoU", "regions_per_image")
"""With `evaluate.oracle`."""
WIDE = 150
"""Columns of tables that go to no terminal."""
DIGITS = {"seconds_per_image": 3, "peak_memory_mb": 0}


def run_evaluate(context: Context) -> Result:
    """The evaluate stage: `evaluate/` in the run's folder, with a JSON of per-class scores and pictures for each method."""
    out = context.run_dir / "evaluate"
    config = evaluate_config(context)
    contenders = contenders_of(context)

    def again(_: Result) -> bool:
        wrong = damage(out, context.config.methods, config.names)
        if wrong:
            print(f"evaluate: {wrong}; it is made again", flush=True)
        return bool(wrong)

    result = context.stage(
        "evaluate",
        fingerprint_of_scores(context.config, config, contenders),
        out,
        lambda: _evaluate(context, contenders, config, out),
        again=again,
        files=lambda: _files(out, contenders, config),
    )
    print_scores(result, config.names)
    if config.pictures:
        print(f"pictures: {out / 'pictures'}")
    return result


def _evaluate(context: Context, contenders: list[Contender], config: EvaluateConfig, out: Path) -> Result:
    """The work of the stage."""
    scores = evaluate(contenders, config, context.config.session, out)
    if config.bootstrap:
        print(f"evaluate: intervals from {config.bootstrap} resamples", flush=True)
    counts = {name: {dataset: score.by_image for dataset, score in row.items()} for name, row in scores.items()}
    intervals = {name: row_intervals([row], draws=config.bootstrap) for name, row in counts.items() if config.bootstrap}
    miou: dict[str, dict[str, float]] = {}
    averages: dict[str, dict[str, float]] = {}
    oracle: dict[str, dict[str, float]] = {}
    for contender in contenders:
        with context.tracker.child(f"evaluate {contender.name}", stage="evaluate") as run:
            name = contender.name
            reports = _publish(run, contender, config, scores[name], intervals.get(name, {}), out)
            averages[name] = _averages(reports)
            miou[name] = _row(reports, "mIoU")
            run.metrics({"average/mIoU": miou[name][AVERAGE]})
            if config.oracle:
                oracle[name] = _row(reports, "oracle_mIoU")
                run.metrics({"average/oracle_mIoU": oracle[name][AVERAGE]})
            if config.pictures:
                print(f"evaluate: drawing the best, median and worst images of {name}", flush=True)
                draw([contender], scores, config, out / "pictures")
                run.artifact(out / "pictures" / contender.name, "pictures")
    for name, values in miou.items():
        context.tracker.metrics({f"{name}/{dataset}/mIoU": value for dataset, value in values.items()})
    first = scores[contenders[0].name]
    return {
        "mIoU": miou,
        "intervals": {name: {dataset: [*ends] for dataset, ends in row.items()} for name, row in intervals.items()},
        "differences": _against_best(counts, miou, config) if config.bootstrap else {},
        "averages": averages,
        **({"oracle_mIoU": oracle} if config.oracle else {}),
        "protocol": summary_of(config),
        "settings": {contender.name: settings_of(contender, config, scores[contender.name]) for contender in contenders},
        "images": {name: len(score.images) for name, score in first.items()},
        "skipped": {name: sorted(score.skipped) for name, score in first.items() if score.skipped},
        "shortened": {
            name: {dataset: [*score.shortened] for dataset, score in row.items() if score.shortened}
            for name, row in scores.items()
        },
        "digest": digest_of(miou),
    }


def damage(out: Path, methods: Sequence[str], datasets: Sequence[str]) -> str:
    """What is wrong with the first file of a finished evaluation that is not as it was written; empty where all are."""
    for file in (out / method / dataset for method in methods for dataset in datasets):
        try:
            read_image_counts(file.with_name(f"{file.name}.npz"))
            read_json(file.with_name(f"{file.name}.json"), "dataset", "mIoU", "IoU")
        except InputError as error:
            return str(error)
    return ""


def _files(out: Path, contenders: Sequence[Contender], config: EvaluateConfig) -> list[Path]:
    """What the stage wrote: scores and pictures, without the parts that were added up."""
    scored = [(out / row.name, f"{name}.{kind}") for row in contenders for name in config.names for kind in ("json", "npz")]
    pictures = [path for row in contenders for path in sorted((out / "pictures" / row.name).glob("*.png"))]
    return [*(folder / file for folder, file in scored), *(pictures if config.pictures else [])]


def settings_of(contender: Contender, config: EvaluateConfig, scores: dict[str, Score]) -> str:
    """What decides on a row's numbers beside weights and protocol: "templates tcl, pamr off, background 0.5"."""
    given = {key.replace("_", " "): getattr(contender.method, key) for key in shown_settings(contender.method)}
    told = [f"{key} {('off', 'on')[value] if isinstance(value, bool) else value}" for key, value in given.items()]
    if thresholds := _thresholds(contender, config, scores):
        kind = "background probability" if config.preset == "sclip" else "background"
        told.append(f"{kind} {'/'.join(f'{value:g}' for value in thresholds)}")
    return ", ".join(told)


def _thresholds(contender: Contender, config: EvaluateConfig, scores: dict[str, Score]) -> list[float]:
    """What decides on background: the evaluator's constants; of a method that decides it itself, the values it goes by."""
    constants = {score.threshold for score in scores.values() if score.threshold is not None}
    with_background = [name for name in scores if protocol_of(config, name).benchmark.background]
    own = [getattr(contender.for_dataset(name).method, "background_threshold", None) for name in with_background]
    return sorted(constants or {value for value in own if value is not None})


def contenders_of(context: Context) -> list[Contender]:
    """The rows of the table."""
    encoder = trained_encoder(context)
    return [
        Contender(
            name=name,
            method=(model := located_model(context.config, name)),
            encoder=encoder,
            normalisation=context.config.normalisation,
            weights=weights_of(context, name) if isinstance(model, TrainableConfig) else None,
        )
        for name in context.config.methods
    ]


def fingerprint_of_scores(run: Config, config: EvaluateConfig, contenders: list[Contender]) -> str:
    """Changes with the rows, the protocol and the benchmark files (names, sizes, times)."""
    protocols = {name: protocol_of(config, name) for name in config.names}
    listed = {name: list_items(protocol.benchmark, config.folder) for name, protocol in protocols.items()}
    files = {name: fingerprint_of(items[: config.limit or None]) for name, items in listed.items()}
    rows = [[contender.name, contender.fingerprint()] for contender in contenders]
    texts = {name: asdict(protocol) for name, protocol in protocols.items()}  # lists of names may change under one path
    settings = {key: value for key, value in to_dict(run.evaluate).items() if "evaluate" in roles_of(f"evaluate.{key}")}
    return digest_of([FORMAT, rows, settings, texts, files])


def _publish(
    run: Run,
    contender: Contender,
    config: EvaluateConfig,
    scores: dict[str, Score],
    intervals: Mapping[str, Interval],
    out: Path,
) -> dict[str, Result]:
    """Write a method's JSON files and counts by image, and log them; returns what the JSON files hold, by dataset."""
    run.tags({"model": contender.name, "preset": config.preset})
    run.params({"protocol": summary_of(config), "settings": settings_of(contender, config, scores)})
    run.params({key: getattr(config, key) or "the preset's" for key in OVERRIDES})
    reports: dict[str, Result] = {}
    per_class: list[dict[str, Any]] = []
    for name in config.names:
        scored = reports[name] = report(protocol_of(config, name), config, scores[name])
        if name in intervals:
            scored["mIoU_interval"] = [*intervals[name]]
        scored["settings"] = settings_of(contender, config, {name: scores[name]})
        write_json(out / contender.name / f"{name}.json", scored)
        write_image_counts(out / contender.name / f"{name}.npz", scores[name].by_image)
        run.metrics({f"{name}/{metric}": scored[metric] for metric in _metrics(scored)})
        per_class += [
            {"dataset": name, "class": class_, "IoU": iou, "boundary_IoU": scored["boundary_IoU_by_class"][class_]}
            for class_, iou in scored["IoU"].items()
        ]
    for name, interval in intervals.items():
        run.metrics({f"{name}/mIoU_low": interval.low, f"{name}/mIoU_high": interval.high})
    run.table(per_class, "per_class.json")
    run.dataset("benchmarks", source=config.root, digest=digest_of(to_dict(config)), context="evaluation")
    return reports


def _metrics(scored: Result) -> list[str]:
    """The metrics that a report, or the averages of some, have."""
    return [metric for metric in (*METRICS, *ORACLE_METRICS) if metric in scored]


def _row(reports: dict[str, Result], metric: str) -> dict[str, float]:
    """A metric by dataset, with the plain mean of `averaged` as "average"."""
    row = {name: scored[metric] for name, scored in reports.items()}
    return row | {AVERAGE: float(np.mean([row[name] for name in averaged([*row])]))}


def _averages(reports: dict[str, Result]) -> dict[str, float]:
    """The plain means of `averaged` of the scores beside mIoU."""
    metrics = _metrics(next(iter(reports.values())))
    return {metric: _row(reports, metric)[AVERAGE] for metric in metrics if metric != "mIoU"}


def _against_best(
    counts: Mapping[str, Row], miou: Mapping[str, Mapping[str, float]], config: EvaluateConfig
) -> dict[str, list[float]]:
    """How far the row with the best average is ahead of each other row: difference of the averages, low and high."""
    best = max(miou, key=lambda name: miou[name][AVERAGE])
    others = [name for name in miou if name != best]
    return {
        f"{best} - {name}": [*difference_intervals([counts[best]], [counts[name]], draws=config.bootstrap)[AVERAGE]]
        for name in others
    }


def print_scores(result: Result, datasets: Sequence[str]) -> None:
    """The results: mIoU by method and benchmark; the other scores' averages beside each row's settings; the best row's lead."""
    print(f"zero-shot mIoU (%), {result['protocol']}")
    console = console_for(WIDE)
    scores = [
        [name, *(f"{row[dataset]:.1f}" for dataset in datasets), _average(result, name)] for name, row in result["mIoU"].items()
    ]
    print_table(console, ["method", *datasets, AVERAGE], scores)
    averages = next(iter(result["averages"].values()))
    metrics = [metric for metric in (*METRICS, "oracle_mIoU") if metric in averages]
    others = [
        [name, *(f"{means[metric]:.{DIGITS.get(metric, 1)}f}" for metric in metrics)]
        for name, means in result["averages"].items()
    ]
    print_table(console, ["averages of", *(metric.replace("_", " ") for metric in metrics)], others)
    for name, settings in result["settings"].items():
        print(f"{name}: {settings or 'no settings'}")
    if result["differences"]:
        print("lead of the best average, with its 95 % interval over resampled images (paired):")
    for pair, (mean, low, high) in result["differences"].items():
        noise = "" if Difference(mean, low, high).significant else ", not larger than noise"
        print(f"  {pair} {mean:+.1f} ({low:.1f}..{high:.1f}){noise}")
    for dataset, ids in result["skipped"].items():
        left_out = f"{', '.join(ids[:MAX_LISTED])}{', ...' if len(ids) > MAX_LISTED else ''}"
        print(f"{dataset}: {len(ids)} of {len(ids) + result['images'][dataset]} images left out, unreadable: {left_out}")
    for name, row in result.get("shortened", {}).items():
        for dataset, names in row.items():
            print(f"{name}: {dataset}: {told_shortened(names)}")


def _average(result: Result, name: str) -> str:
    """A row's average, with half the width of its interval where it has one."""
    average = f"{result['mIoU'][name][AVERAGE]:.1f}"
    if interval := result["intervals"].get(name):
        low, high = interval[AVERAGE]
        average += f" ± {(high - low) / 2:.1f}"
    return average


def run(config: Config, verify: bool = False) -> None:
    """The verb; stages before it that are not complete run first."""
    check_encoder(config)
    check_methods(config)
    check_weights(config)
    check_benchmarks(config)
    with open_context(config, verify=verify) as context:
        ensure_trained(context)
        run_evaluate(context)


if __name__ == "__main__":
    sys.exit(
        main(
            run,
            doc=__doc__ or "",
            flags={"--check": check, **VERIFY, **dry_run("evaluate")},
        )
    )
