"""What `--check` and the converters tell about benchmark folders."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from owseg.evaluation.check import Report
from pipelines.app.outcome import print_text


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
    lines = [f"benchmarks in {root}", rows.get().rstrip()]
    for name, report in reports.items():
        for kind, findings in (("problem", report.problems), ("warning", report.warnings)):
            lines += [f"{kind}: {name}: {finding.removeprefix(f'{name}: ')}" for finding in findings]
    print_text("\n".join(lines))
