"""What becomes of a training that loses workers or nodes: it is told, room is waited for, and what does not heal ends it.

Ray Train starts a new worker group from the last checkpoint by itself. It does so without a word, counts a minute without room
as one of four, and tries again on a full disk. `Recovery` runs on Ray Train's controller and is asked before each start.
"""

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train import TrainingFailedError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cluster import InputError
from cluster.capacity import ensure_room
from cluster.checkpoints import last
from cluster.failures import RESUME, SPACE, chain_of, machine_problem
from cluster.heartbeats import forget, stuck
from owseg import InputError as MistakeOfTraining
from owseg.snapshots import step_of

TRY_SECONDS = 10.0
"""Ray Train's one wait for resources that others use; between two of them is a line."""
LONGEST = 200
NEVER_HEALS = (SPACE, os.strerror(errno.EROFS))
"""What reasons say that are no use to be tried again at once."""


@dataclass(kw_only=True)
class Recovery(WorkerGroupCallback):  # type: ignore[misc]  # Ray publishes no types
    """Watches the worker groups of one training from Ray Train's controller."""

    events: Path
    """File of lines for the user: the controller has no terminal."""
    ranks: Path
    """Folder of the ranks' places."""
    label: dict[str, str] | None
    seconds: float
    """That workers may take to start, once lost, before the run stops."""
    collective_seconds: float
    """After which ranks that wait in vain end."""
    shared: bool
    """Whether the cluster may get nodes; this machine's own Ray does not."""
    least: int
    """The fewest training processes that may be. Where there is room for them, Ray Train asks its policy anew."""
    restarts: int
    """Failures after which Ray Train still starts a new group."""
    storage: Path
    """Folder of Ray Train's checkpoints."""
    asked: int = 0
    """Workers of the group that starts."""
    workers: int = 0
    """Of the last group that has started; 0 = there was none."""
    since: float | None = None
    failures: int = 0
    failed: bool = False
    """Whether this worker group's failure was told."""
    told: set[str] = field(default_factory=set)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Raises InputError where the cluster has no room for so long."""
        now = time.monotonic()
        again, self.since = self.since is not None, self.since or now
        waited = now - self.since
        workers = worker_group_context.num_workers
        if waited >= self.seconds:
            raise InputError(
                f"the {workers} training processes did not start within {waited:.0f} s (train.recovery_seconds): "
                f"others use the Ray cluster, or its nodes fail; look at `ray status`; {kept(self.storage)}"
            )
        if again:
            self.say(f"waits for {workers} training processes to start on the Ray cluster ({waited:.0f} s)")
        self.asked = workers
        forget(self.ranks)
        patience = self.seconds - waited if self.shared else 0.0
        try:
            each = worker_group_context.resources_per_worker
            ensure_room(self.least, each, self.label, patience=patience, say=self.say, setting="train.recovery_seconds")
        except InputError as error:
            raise InputError(f"{error}; {kept(self.storage)}") from None
        self.told.clear()
        self.failed = False

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Tell where the number of processes is another."""
        self.since = None
        if self.workers not in (0, self.asked):
            self.say(f"goes on with {self.asked} training processes, {self.workers} before; {kept(self.storage)}")
        self.workers = self.asked

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Tell what failed, and what of it is no use to be tried again. Raises InputError for that."""
        if (info := worker_group_status.get_preemption_info()) is not None:
            ranks = _listed(info.preempted_ranks)
            self._once(f"the nodes of ranks {ranks} are about to be taken back: a checkpoint is written")
            return  # what fails then is not counted
        errors = worker_group_status.errors
        mistake = any(isinstance(one, MistakeOfTraining) for error in errors.values() for one in chain_of(error))
        if not errors or mistake or self.failed:
            return
        reason, failed, hopeless = what_failed(errors, self.storage)
        if hopeless:
            raise InputError(f"{reason}; {kept(self.storage)}")
        well = [rank for rank, status in worker_group_status.worker_statuses.items() if status.error is None]
        names = stuck(self.ranks, well, self.collective_seconds)
        if names and names.partition(" (")[0] not in reason:  # which may name it by itself
            reason = f"{reason.partition(';')[0]}, and {names} did not move for {self.collective_seconds:g} s"
        self.failed, self.failures = True, self.failures + 1
        new = f"new workers start ({self.failures} of {self.restarts} times, train.max_failures)"
        then = new if self.failures <= self.restarts else "gives up"
        self.say(f"rank {_listed(failed)} failed: {reason.partition(';')[0]}; {kept(self.storage)}; {then}")

    def _once(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self.say(line)

    def say(self, line: str) -> None:
        """For the driver, which reads the file."""
        try:
            with self.events.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError:  # a line is not worth a training
            return


def what_failed(errors: Mapping[int, BaseException], storage: Path) -> tuple[str, list[int], bool]:
    """The reason why a worker group failed, the ranks that say so, and whether trying again is of no use."""
    reasons = {rank: machine_problem(error, [storage]) for rank, error in sorted(errors.items())}
    found = next((reason for reason in reasons.values() if reason), None)
    if found is None:
        rank, error = next(iter(sorted(errors.items())))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[-1][:LONGEST], [rank], False
    hopeless = any(words in found for words in NEVER_HEALS)
    return found, [rank for rank, reason in reasons.items() if reason == found], hopeless


def kept(storage: Path) -> str:
    """What is kept of a training, in words."""
    checkpoint = last(storage)
    if checkpoint is None:
        return "there is no checkpoint yet"
    return f"the last checkpoint is step {step_of(checkpoint)}, {checkpoint}"


@contextmanager
def told(storage: Path) -> Iterator[None]:
    """Turn what Ray Train gives up on into one line that names the last checkpoint, where it is no fault of the program."""
    try:
        yield
    except TrainingFailedError as error:
        if any(isinstance(one, (InputError, MistakeOfTraining)) for one in chain_of(error)):
            raise
        problem = machine_problem(error)
        if problem is None:
            raise
        again = "" if RESUME in problem else f", {RESUME}"
        raise InputError(f"{problem}{again} ({kept(storage)})") from error


@contextmanager
def ray_settings(collective_seconds: float) -> Iterator[None]:
    """Ray Train's own settings, which it takes from the driver's environment, while inside."""
    wanted = {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(TRY_SECONDS),
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(collective_seconds),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
