"""Trained methods in, the table of zero-shot mIoU out: eight benchmarks, one protocol, pictures of the best and the worst."""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from cluster.evaluate import FORMAT, Contender, draw, evaluate, fingerprint_of
from cluster.tracking import Run
from filtering.files import digest_of, write_json
from owseg import InputError
from owseg.evaluation.convert import read_json
from owseg.evaluation.datasets import list_items
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
from owseg.evaluation.protocols import EvaluateConfig, protocol_of, summary_of
from owseg.evaluation.scoring import Score, report
from owseg.fields import shown_settings
from owseg.method_config import TrainableConfig
from owseg.text import told_shortened
from pipelines.app.benchmark_data import benchmark_data
from pipelines.app.checks import check_benchmarks, check_encoder, check_methods, check_weights
from pipelines.app.cli import VERIFY, main
from pipelines.app.config import to_dict
from pipelines.app.context import Context, Result, open_context
from pipelines.app.dry_run import dry_run
from pipelines.app.resolve import located_model
from pipelines.app.roles import roles_of
from pipelines.app.score_records import (
    METRICS,
    begun,
    child,
    draw_confusions,
    metrics_of,
    record_confusions,
    record_scores,
    row_of,
)
from pipelines.app.settings import Config
from pipelines.app.tables import console_for, print_table
from pipelines.app.world import evaluate_config
from pipelines.benchmark_check import check
from pipelines.train import ensure_trained, trained_encoder, weights_of

MAX_LISTED = 5
"""Unreadable images that are named below the table; the JSON files name all."""
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
    """The work of the stage, each method's in an MLflow run that is open from the beginning."""
    with ExitStack() as stack:
        runs = {row.name: begun(stack.enter_context(child(context, row.name)), context, row, config) for row in contenders}
        scores = evaluate(
            contenders,
            config,
            context.config.session,
            out,
            lambda name, done: runs[name].metrics({"progress/images": done}, step=done),
        )
        return _publish(context, contenders, config, scores, runs, out)


def _publish(
    context: Context,
    contenders: list[Contender],
    config: EvaluateConfig,
    scores: dict[str, dict[str, Score]],
    runs: Mapping[str, Run],
    out: Path,
) -> Result:
    """Write what the scores come to, and record it; returns the stage's result."""
    if config.bootstrap:
        print(f"evaluate: intervals from {config.bootstrap} resamples", flush=True)
    counts = {name: {dataset: score.by_image for dataset, score in row.items()} for name, row in scores.items()}
    intervals = {name: row_intervals([row], draws=config.bootstrap) for name, row in counts.items() if config.bootstrap}
    data = benchmark_data(config, out)
    for benchmark in data.values():
        context.tracker.dataset(benchmark, context="evaluation")
    reports = {row.name: _write_reports(row, config, scores[row.name], intervals.get(row.name, {}), out) for row in contenders}
    for contender in contenders:
        name = contender.name
        if config.pictures:
            print(f"evaluate: drawing the best, median and worst images of {name}", flush=True)
            draw([contender], scores, config, out / "pictures")
            draw_confusions(contender, config, scores[name], out / "pictures")
        pictures = out / "pictures" if config.pictures else None
        record_scores(runs[name], contender, reports[name], intervals.get(name, {}), data, pictures)
        record_confusions(runs[name], config, scores[name])
    miou = {name: row_of(found, "mIoU") for name, found in reports.items()}
    first = scores[contenders[0].name]
    return {
        "mIoU": miou,
        "intervals": {name: {dataset: [*ends] for dataset, ends in row.items()} for name, row in intervals.items()},
        "differences": _against_best(counts, miou, config) if config.bootstrap else {},
        "averages": {name: _averages(found) for name, found in reports.items()},
        **({"oracle_mIoU": {name: row_of(found, "oracle_mIoU") for name, found in reports.items()}} if config.oracle else {}),
        "protocol": summary_of(config),
        "settings": {contender.name: settings_of(contender, config, scores[contender.name]) for contender in contenders},
        "images": {name: len(score.images) for name, score in first.items()},
        "data": {name: one.digest for name, one in data.items()},
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


def _write_reports(
    contender: Contender, config: EvaluateConfig, scores: dict[str, Score], intervals: Mapping[str, Interval], out: Path
) -> dict[str, Result]:
    """Write a method's JSON files and counts by image; returns what the JSON files hold, by dataset."""
    reports: dict[str, Result] = {}
    for name in config.names:
        scored = reports[name] = report(protocol_of(config, name), config, scores[name])
        if name in intervals:
            scored["mIoU_interval"] = [*intervals[name]]
        scored["settings"] = settings_of(contender, config, {name: scores[name]})
        write_json(out / contender.name / f"{name}.json", scored)
        write_image_counts(out / contender.name / f"{name}.npz", scores[name].by_image)
    return reports


def _averages(reports: dict[str, Result]) -> dict[str, float]:
    """The plain means of `averaged` of the scores beside mIoU."""
    metrics = metrics_of(next(iter(reports.values())))
    return {metric: row_of(reports, metric)[AVERAGE] for metric in metrics if metric != "mIoU"}


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
