"""`--dry-run`: what a verb would do, with counts, time and room, after all its checks; nothing is written."""

from collections.abc import Callable, Sequence

from cluster.progress import duration
from filtering.images.progress import size
from pipelines.app.checks import check_benchmarks, check_encoder, check_methods, check_weights
from pipelines.app.forecast import Forecast, forecasts
from pipelines.app.measured import Measured
from pipelines.app.outcome import print_text
from pipelines.app.resolve import planned_stages
from pipelines.app.run_dir import refuse_other_run
from pipelines.app.run_state import STAGES
from pipelines.app.settings import Config
from storage.client import is_object_store

Check = Callable[[Config], None]
OF_METHODS: tuple[Check, ...] = (check_encoder, check_methods, check_weights)
CHECKS: dict[str, tuple[Check, ...]] = {
    "features": OF_METHODS,
    "train": OF_METHODS,
    "evaluate": (*OF_METHODS, check_benchmarks),
}


def dry_run(last: str) -> dict[str, Check]:
    """The option of a verb that ends with the stage `last`."""
    until = STAGES[: STAGES.index(last) + 1]

    def show(config: Config) -> None:
        if not is_object_store(config.run_dir):
            refuse_other_run(config)
        for check in CHECKS.get(last, ()):
            check(config)
        chosen = tuple(stage for stage in planned_stages(config) if stage in until) or until
        rates = Measured(config.run_dir)
        print_text("\n".join(lines_of(config.run_dir, list(forecasts(config, chosen, rates)), rates.own.free())))

    show.__doc__ = "check all settings and inputs, tell what would be done and what it takes, and stop; nothing is written"
    return {"--dry-run": show}


def lines_of(run_dir: str, plan: Sequence[Forecast], free: int | None) -> list[str]:
    """The plan for people."""
    lines = [f"plan of {run_dir}; nothing is written"]
    for number, step in enumerate(plan, 1):
        told = "complete already" if step.done else f"{_time(step.seconds)}, {size(step.bytes)} of disk"
        lines.append(f"  {number} {step.stage:<9} {step.work}: {told}")
        lines += [f"              {basis}" for basis in step.basis]
    seconds = [step.seconds for step in plan]
    unknown = " and what is unknown" if None in seconds else ""
    room = sum(step.bytes for step in plan)
    left = "" if free is None else f" of {size(free)} free"
    lines.append(f"  together    about {duration(sum(filter(None, seconds)))}{unknown}, {size(room)} of disk{left}")
    if free is not None and room > free:
        lines.append("  it does not fit: free some (owseg prune), or take another disk with run_dir=FOLDER")
    return lines


def _time(seconds: float | None) -> str:
    return "time unknown" if seconds is None else f"about {duration(seconds)}"
