"""What the verbs of a run share: settings, tracker, stage results, and the summary that is written last."""

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.open_tracker import open_tracker
from cluster.run_log import current, run_log
from cluster.store_uri import LOCAL, pages, sqlite_file
from cluster.tracking import Tracker
from filtering.files import Recorded, write_json
from filtering.secrets import masked
from pipelines.app.forecast import check_disk
from pipelines.app.interrupts import at_the_last
from pipelines.app.object_store import save
from pipelines.app.records import record_run
from pipelines.app.run_dir import digest_of_run, recorded
from pipelines.app.settings import Config
from pipelines.app.stage_marker import (
    StageMarker,
    describe_losses,
    files_of,
    lost_files,
    read_marker,
    record_files,
    remove_marker,
    write_marker,
)
from storage.copies import at, discard, shown

SUMMARY = "summary.json"
Result = dict[str, Any]
Again = Callable[[Result], bool]
Files = Callable[[], Iterable[Path]]


@dataclass
class Context:
    """One run: its config with an absolute `run_dir`, its tracker, and what its stages came to."""

    config: Config
    tracker: Tracker
    verify: bool = False
    """Whether digests are compared, too, before a stage counts as complete."""
    planned: tuple[str, ...] = ()
    """The stages of the whole chain, for their place in it; none where a verb runs what it needs."""
    stages: dict[str, Result] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        """The folder that holds everything the run writes."""
        return Path(self.config.run_dir)

    def stage(
        self,
        name: str,
        fingerprint: str,
        output: Path,
        work: Callable[[], Result],
        *,
        again: Again = lambda result: False,
        files: Files = tuple,
    ) -> Result:
        """Run a stage unless it is complete for this fingerprint and its files are as it wrote them.

        `work` returns its counts, the output's "digest" and, of an output in shards, which record their files themselves,
        their number "shards". `files` are what else it wrote, asked for when it is done. `again` tells from the result of a
        complete stage whether its work, done once more, may come to something better.

        The result, with "status" (done or skipped), "seconds" (of the work, also where it was done before) and "output", goes
        into the summary.
        """
        result = self.stages[name] = self.part(name, fingerprint, output, work, again=again, files=files)
        return result

    def part(
        self,
        name: str,
        fingerprint: str,
        output: Path,
        work: Callable[[], Result],
        *,
        again: Again = lambda result: False,
        files: Files = tuple,
    ) -> Result:
        """The same for a part of a stage, which the summary does not list."""
        if log := current():
            log.of(stage=name)
        where = output.relative_to(self.run_dir).as_posix()
        marker = read_marker(self.run_dir, name, fingerprint)
        if marker is not None and output.exists() and self._is_whole(name, marker, where, files) and not again(marker.result):
            status, result, seconds = "skipped", marker.result, marker.seconds
            print(f"{name}: skipped, complete already ({output}){self._place(name)}", flush=True)
        else:
            print(f"{name}: started{self._place(name)}", flush=True)
            check_disk(self.config, name)
            began = time.monotonic()
            remove_marker(self.run_dir, name)  # what it tells of, such as another list in the same file, is about to change
            save(self.run_dir)
            status, result = "done", work()
            seconds = time.monotonic() - began
            marker = StageMarker(
                fingerprint=fingerprint,
                digest=result["digest"],
                seconds=seconds,
                result=result,
                output=where,
                shards=result.get("shards"),
                files=record_files(self.run_dir, files()),
            )
            write_marker(self.run_dir, name, marker)
            save(self.run_dir)
            print(f"{name}: done in {seconds:.0f} s", flush=True)
        return {"status": status, "seconds": round(seconds, 3), "output": where, **result}

    def _place(self, name: str) -> str:
        """ ", stage 2 of 4" for a stage of the chain."""
        return f", stage {self.planned.index(name) + 1} of {len(self.planned)}" if name in self.planned else ""

    def _is_whole(self, name: str, marker: StageMarker, output: str, files: Files) -> bool:
        """Whether the files of a complete stage are as it wrote them; if not, says so, and makes room for them."""
        if not marker.output:  # an older version's: it does not say what it wrote, which then only has to be there
            there = {path.relative_to(self.run_dir).as_posix(): [*Recorded(None, "")] for path in files()}
            marker = replace(marker, output=output, files=there)
        lost = lost_files(self.run_dir, marker, verify=self.verify)
        for file, loss in lost.items():
            if loss == "changed":  # none of it can be trusted, as of a file that is cut
                discard(self.run_dir / file)
        if lost:
            print(f"{name}: {describe_losses(lost, len(files_of(self.run_dir, marker)))}: made again", flush=True)
        return not lost


@contextmanager
def open_context(config: Config, *, verify: bool = False, planned: tuple[str, ...] = ()) -> Iterator[Context]:
    """The context of a run; when the block ends well, `summary.json` is written with the stages that it ran.

    planned: the stages of the whole chain, where that is what runs.
    """
    settings = recorded(config)
    config_digest = digest_of_run(config)
    run_dir = Path(config.run_dir)
    name = shown(run_dir).rstrip("/").rpartition("/")[2]
    with (
        run_log(run_dir) as log,
        at_the_last() as act_last,
        open_tracker(config.tracking, run_dir, name=name, settings=settings, digest=config_digest) as tracker,
    ):
        log.of(run=tracker.run_id)
        act_last(tracker.abandon)
        context = Context(config, tracker, verify, planned)
        yield context
        record_run(tracker, config, context.stages)
    # After the tracker has closed: who finds the summary need not look again at anything.
    write_json(
        run_dir / SUMMARY,
        {
            "run_dir": shown(run_dir),
            "config_digest": config_digest,
            "mlflow": where_recorded(tracker),
            "stages": {**_stages_before(run_dir), **context.stages},
        },
    )
    for line in where_to_look(tracker, run_dir):
        print(line, flush=True)


def where_to_look(tracker: Tracker, run_dir: Path) -> list[str]:
    """Lines that lead to a run's pages in MLflow; none where nothing is recorded."""
    if not tracker.uri:
        return []
    if found := pages(tracker.uri, tracker.experiment_id, tracker.run_id):
        return [f"MLflow, this run: {found['run']}", f"MLflow, all runs: {found['runs']}"]
    if at(run_dir):
        return [f"MLflow: its runs are in mlflow.db of {shown(run_dir)}; teams record in a server instead (tracking.uri)"]
    if sqlite_file(tracker.uri) is None:
        return [f"MLflow: run {tracker.run_id} in {masked(tracker.uri)}"]
    command, page = shlex.quote(f"RUN_DIR={run_dir}"), pages(LOCAL, tracker.experiment_id, tracker.run_id)["run"]
    return [f"MLflow: `make up {command}` opens {page}"]


def where_recorded(tracker: Tracker) -> dict[str, Any]:
    """The run in MLflow, for records of it; and what was not recorded there, if anything."""
    where = {"tracking_uri": masked(tracker.uri), "experiment": tracker.experiment, "run_id": tracker.run_id}
    return {**where, **({"not_recorded": dict(tracker.not_recorded)} if tracker.not_recorded else {})}


def _stages_before(run_dir: Path) -> dict[str, Result]:
    try:
        stages = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged: what it told is lost, not what the stages made
        return {}
    return stages if isinstance(stages, dict) else {}
