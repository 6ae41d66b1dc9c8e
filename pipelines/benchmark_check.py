"""`--check`: whether the benchmark folders are fit to be scored, known in seconds."""

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table

from cluster.tracking import NullTracker
from owseg import InputError
from owseg.evaluation.check import Report, check_benchmark
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from pipelines.app.context import Context
from pipelines.app.outcome import print_text
from pipelines.app.run_dir import open_run_dir
from pipelines.app.settings import Config
from pipelines.app.world import evaluate_config


def check(config: Config) -> None:
    """validate the benchmark folders in seconds and stop: exit code 0, or 2 with a line for each problem"""
    if config.evaluate.root or len(config.evaluate.own) == len(config.evaluate.datasets):
        settings = config.evaluate
        if settings.root and not settings.folder.is_dir():
            raise InputError(f"evaluate.root: {settings.root} is no folder; it must hold VOCdevkit, coco_stuff164k, ...")
    else:
        with open_run_dir(config, None) as held:
            settings = evaluate_config(Context(held, NullTracker()))
    reports = dict(_reports(settings))
    print_reports(reports, settings.root)
    bad = [name for name, report in reports.items() if report.problems]
    if bad:
        raise InputError(f"{len(bad)} of {len(reports)} benchmarks cannot be scored as they are: {', '.join(bad)}")


def print_reports(reports: Mapping[str, Report], root: str) -> None:
    """A row for each benchmark, then a line for each problem and warning."""
    table = Table()
    for column in ("benchmark", "images", "decoded", "verdict"):
        table.add_column(column, justify="right" if column in ("images", "decoded") else "left")
    for name, report in reports.items():
        table.add_row(name, str(report.images), str(report.decoded), report.verdict)
    console = Console()
    with console.capture() as rows:
        console.print(table)
    lines = [f"benchmarks in {root}" if root else "own datasets", rows.get().rstrip()]
    for name, report in reports.items():
        for kind, findings in (("problem", report.problems), ("warning", report.warnings)):
            lines += [f"{kind}: {name}: {finding.removeprefix(f'{name}: ')}" for finding in findings]
    print_text("\n".join(lines))


def _reports(config: EvaluateConfig) -> Iterator[tuple[str, Report]]:
    for name in config.names:
        try:
            benchmark = protocol_of(config, name).benchmark
        except InputError as error:  # a file of class names
            yield name, Report(problems=(str(error),))
        else:
            yield name, check_benchmark(benchmark, config.folder)
