"""What the verbs of a run share: settings, tracker, stage results, and the summary that is written last."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.open_tracker import open_tracker
from cluster.tracking import Tracker
from filtering.files import write_json
from pipelines.app.config import to_dict
from pipelines.app.run_dir import digest_of_run
from pipelines.app.settings import Config
from pipelines.app.stage_marker import StageMarker, read_marker, remove_marker, write_marker

SUMMARY = "summary.json"
Result = dict[str, Any]
Again = Callable[[Result], bool]


@dataclass
class Context:
    """One run: its config with an absolute `run_dir`, its tracker, and what its stages came to."""

    config: Config
    tracker: Tracker
    stages: dict[str, Result] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        """The folder that holds everything the run writes."""
        return Path(self.config.run_dir)

    def stage(
        self, name: str, fingerprint: str, output: Path, work: Callable[[], Result], again: Again = lambda result: False
    ) -> Result:
        """Run a stage unless it is complete for this fingerprint. `work` returns its counts and the output's "digest".

        `again` tells from the result of a complete stage whether its work, done once more, may come to something better.

        The result, with "status" (done or skipped), "seconds" and "output", goes into the summary.
        """
        result = self.stages[name] = self.part(name, fingerprint, output, work, again)
        return result

    def part(
        self, name: str, fingerprint: str, output: Path, work: Callable[[], Result], again: Again = lambda result: False
    ) -> Result:
        """The same for a part of a stage, which the summary does not list."""
        began = time.monotonic()
        marker = read_marker(self.run_dir, name, fingerprint)
        if marker is not None and output.exists() and not again(marker.result):
            status, result = "skipped", marker.result
            print(f"{name}: skipped, complete already ({output})", flush=True)
        else:
            print(f"{name}: started", flush=True)
            remove_marker(self.run_dir, name)  # what it tells of, such as another list in the same file, is about to change
            status, result = "done", work()
            seconds = time.monotonic() - began
            write_marker(
                self.run_dir,
                name,
                StageMarker(fingerprint=fingerprint, digest=result["digest"], seconds=seconds, result=result),
            )
            print(f"{name}: done in {seconds:.0f} s", flush=True)
        return {
            "status": status,
            "seconds": round(time.monotonic() - began, 3),
            "output": output.relative_to(self.run_dir).as_posix(),
            **result,
        }


@contextmanager
def open_context(config: Config) -> Iterator[Context]:
    """The context of a run; when the block ends well, `summary.json` is written with the stages that it ran."""
    settings = to_dict(config)
    config_digest = digest_of_run(config)
    run_dir = Path(config.run_dir)
    with open_tracker(config.tracking, run_dir, name=run_dir.name, settings=settings, digest=config_digest) as tracker:
        context = Context(config, tracker)
        yield context
    # After the tracker has closed: who finds the summary need not look again at anything.
    write_json(
        run_dir / SUMMARY,
        {
            "run_dir": str(run_dir),
            "config_digest": config_digest,
            "mlflow": {"tracking_uri": tracker.uri, "experiment": tracker.experiment, "run_id": tracker.run_id},
            "stages": {**_stages_before(run_dir), **context.stages},
        },
    )


def _stages_before(run_dir: Path) -> dict[str, Result]:
    try:
        stages = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))["stages"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return stages if isinstance(stages, dict) else {}
