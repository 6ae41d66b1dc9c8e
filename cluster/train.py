"""Training on Ray Train: every rank runs `owseg.fit`, checkpoints go to the run's folder, and the driver watches."""

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster import InputError
from cluster.capacity import ensure_room
from cluster.checkpoints import mend, parts_of, sweep, sweep_parts
from cluster.engine import DeepSpeedEngine
from cluster.heartbeats import forget, heartbeats, place_of, placed
from cluster.inputs import bring_here
from cluster.metrics import show_training
from cluster.progress import Progress
from cluster.run_log import join, ticket
from cluster.session import SessionConfig, ensure_session, is_shared, selector_of
from cluster.train_config import RayTrainJob
from cluster.tuning import AVERAGE, best_weights, read_scores, scorer
from cluster.without_wandb import without_wandb
from filtering.files import replacing
from owseg import InputError as MistakeOfTraining
from owseg.engine import Engine, TorchEngine, usable_device
from owseg.fit import WEIGHTS, fit
from owseg.optim import OptimConfig, ParameterGroup
from owseg.step_log import Spent, StepLog, read_log
from owseg.training import build, loader
from storage.copies import at, discard, present, pulled, travelling
from storage.filesystem import StoreFileSystem
from storage.live import following, publishing

CHECKPOINTS = "checkpoints"
"""Folder below a training's own in which Ray Train keeps its checkpoints."""
WEIGHTY = (f"{CHECKPOINTS}/*/*",)
"""Ray Train itself brings checkpoints to where they are needed."""
MISTAKE = "mistake.txt"
"""The user's mistake that ended a worker group: one that Ray starts in its place ends with it at once, without the work."""
RANKS = "ranks"
"""Folder of the ranks' places, for the line on one that hangs."""
EVENTS = "events.txt"
"""Lines on workers that were lost and are waited for."""
POLL_SECONDS = 0.5

Observe = Callable[[list[dict[str, Any]]], None]
"""Receives newly logged steps, oldest first: {"step", "lr", "samples_per_second", costs, "loss/<name>"...}."""


def train(job: RayTrainJob, session: SessionConfig, observe: Observe) -> Path:
    """Train to the end, resuming from the last checkpoint where there is one, and return the trained weights' path."""
    ensure_session(session)
    import ray.train
    from ray.train.torch import TorchConfig

    from cluster.elastic import Trainer
    from cluster.recovery import Recovery, ray_settings, told

    label, storage = selector_of(session.train_label), job.out / CHECKPOINTS
    counts = job.counts
    storage.mkdir(parents=True, exist_ok=True)
    shared = is_shared(session)
    patience = job.train.wait_seconds if shared else 0.0
    ensure_room(counts[0], job.train.each, label, patience=patience, say=partial(_say, job))
    _tidy(job, storage, ray.__version__)
    trainer = Trainer(
        train_worker,
        counts=counts,
        storage=storage,
        train_loop_config={"job": job, "shared": shared, "copies": travelling(), "log": ticket()},
        validation_config=_validation(job, label),
        torch_config=TorchConfig(timeout_s=int(job.train.collective_seconds)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(counts[0], counts[-1]) if len(counts) > 1 else counts[0],
            use_gpu=job.train.use_gpu,
            resources_per_worker=job.train.each,
            label_selector=label,
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            **_storage(job.out),
            # Starts that fail are limited by time: `Recovery` ends them.
            failure_config=ray.train.FailureConfig(max_failures=job.train.max_failures, controller_failure_limit=-1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[
                Recovery(
                    events=job.out / EVENTS,
                    ranks=job.out / RANKS,
                    storage=storage,
                    label=label,
                    seconds=job.train.recovery_seconds,
                    collective_seconds=job.train.collective_seconds,
                    shared=shared,
                    least=counts[0],
                    restarts=job.train.max_failures,
                )
            ],
        ),
    )
    with told(storage), ray_settings(job.train.collective_seconds), _watch(job, observe), following(job.out, without=WEIGHTY):
        result = trainer.fit()
    return _finish(job, storage, result.checkpoint)


def _tidy(job: RayTrainJob, storage: Path, ray_version: str) -> None:
    """Make the folder of a training ready for a start."""
    for name in (MISTAKE, EVENTS):
        discard(job.out / name)
    forget(job.out / RANKS)  # of a start that was killed
    for line in mend(pulled(storage), ray_version):
        _say(job, line)
    if copy := at(job.out):
        copy.push()


def _finish(job: RayTrainJob, storage: Path, checkpoint: Any) -> Path:
    """Keep the weights of a training that has ended, and its last checkpoints."""
    if copy := at(job.out):
        copy.pull(job.out, without=WEIGHTY, changed=True)
    sweep(storage)
    forget(job.out / RANKS)
    with checkpoint.as_directory() as folder, replacing(job.weights) as temporary:
        shutil.copyfile(_best_weights(job) or Path(folder) / WEIGHTS, temporary)
    return job.weights


def _storage(folder: Path) -> dict[str, Any]:
    """How Ray Train is told where its checkpoints go."""
    copy = at(folder)
    if copy is None:
        return {"storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    name = folder.relative_to(copy.root).as_posix()
    return {"storage_path": name, "storage_filesystem": PyFileSystem(FSSpecHandler(StoreFileSystem(copy.store)))}


def _best_weights(job: RayTrainJob) -> Path | None:
    """Where the weights lie that scored best, where these are kept; None where the last are, or no checkpoint was scored."""
    if job.tuning is None or not job.train.keep_best:
        return None
    best = best_weights(job.out)
    score = read_scores(job.out).get(best[0]) if best else None
    if best is None or score is None:
        _say(job, "no checkpoint that was scored on the tuning split (evaluate.tuning) is there: the last one is kept")
        return None
    _say(job, f"the weights of step {best[0]} are kept, with {score[AVERAGE]:.1f} mIoU the best on the tuning split")
    return best[1]


def _validation(job: RayTrainJob, label: dict[str, str] | None) -> Any:
    """How Ray Train has checkpoints scored."""
    from ray.train import ValidationConfig

    if job.tuning is None:
        return None
    resources = {"num_cpus": 0.5, "num_gpus": int(job.tuning.use_gpu), "label_selector": label}
    score = scorer(job.method, job.encoder, job.normalisation, job.tuning, job.out)
    return ValidationConfig(score, ray_remote_kwargs=resources)


def _say(job: RayTrainJob, line: str) -> None:
    print(f"train {job.method.name}: {line}", file=sys.stderr, flush=True)


def train_worker(config: dict[str, Any]) -> None:
    """What every rank runs, inside Ray Train's worker group."""
    job: RayTrainJob = config["job"]
    config["copies"].attach()
    join(config["log"])
    without_wandb()
    if copy := at(job.out):
        copy.pull(job.out, without=WEIGHTY, changed=True)
        bring_here(job.method, job.encoder, job.start)
    mistake = job.out / MISTAKE
    if mistake.exists():
        raise InputError(mistake.read_text(encoding="utf-8"))
    with publishing(job.out, "*", f"{RANKS}/*"):
        try:
            _train(job, shared=config["shared"])
        except MistakeOfTraining as error:
            mistake.write_text(str(error), encoding="utf-8")
            raise


def _train(job: RayTrainJob, *, shared: bool) -> None:
    import ray.train

    from cluster.preemption import Notice

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.train.threads)
    device = usable_device("cuda" if job.train.use_gpu else "cpu")
    spent, copy = Spent(device), at(job.out)
    sweep_parts(job.out)

    method = build(job)

    def make_engine(groups: Sequence[ParameterGroup], optim: OptimConfig) -> Engine:
        if job.train.engine == "torch":
            return TorchEngine(method, groups, optim, device, bf16=job.train.bf16)
        return DeepSpeedEngine(
            method,
            groups,
            optim,
            batch_per_worker=optim.batch_size // world_size,
            zero_stage=job.train.zero_stage,
            bf16=job.train.bf16,
            device=device,
        )

    def on_checkpoint(step: int, save: Callable[[Path], None]) -> None:
        where(f"writes the checkpoint of step {step}")
        if copy and rank == 0:  # what resumes from the checkpoint finds all steps before it
            copy.push_files((job.log, job.bad_samples))
        _report(job, step, save)

    with ExitStack() as stack:
        where = stack.enter_context(heartbeats(job.out / RANKS, rank, world_size, job.train.collective_seconds))
        checkpoint = ray.train.get_checkpoint()
        resume = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        if copy and rank == 0:  # the store's, whatever a killed rank left here
            present(job.log)
            present(job.bad_samples)
        log = StepLog(job, resume, spent, write=rank == 0)
        batches = loader(job, method, rank, world_size, log.bad, log.ledger)
        fit(
            method,
            job.method.phases,
            job.method.optim,
            make_engine,
            placed(batches, where),
            seed=job.seed,
            resume=resume,
            log_every=job.train.log_every,
            checkpoint_every=job.train.checkpoint_every,
            max_skipped=job.train.max_skipped_steps,
            on_log=log,
            on_checkpoint=on_checkpoint,
            checkpoint_now=Notice(every=job.train.log_every) if shared else None,
            ledger=log.ledger,
        )


def _report(job: RayTrainJob, step: int, save: Callable[[Path], None]) -> None:
    """Write this rank's part of a checkpoint, and have Ray Train copy it to the run's folder while steps go on.

    What fails in copying ends the step that is under way then.
    """
    import ray.train

    folder = tempfile.mkdtemp(prefix=parts_of(job.out))
    try:
        save(Path(folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    written, copied_beside = ray.train.Checkpoint.from_directory(folder), ray.train.CheckpointUploadMode.ASYNC
    ray.train.report(
        {"step": step}, checkpoint=written, checkpoint_upload_mode=copied_beside, validation=job.tuning is not None
    )


class _watch:  # noqa: N801 - reads as a verb: `with _watch(...)`
    """Follows the step log from the driver: progress on the terminal, new steps to `observe`."""

    def __init__(self, job: RayTrainJob, observe: Observe) -> None:
        self.job, self.observe = job, observe
        self.stop = threading.Event()
        self.seen = self.bad = self.skipped = 0
        self.began = time.monotonic()
        self.events = 0
        self.scored: dict[int, float] = {}

    def __enter__(self) -> None:
        lines = read_log(self.job.log)
        self.start = lines[-1]["step"] if lines else 0
        self.progress = Progress(f"train {self.job.method.name}", total=self.job.steps, unit="steps", start=self.start)
        self.progress.__enter__()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        self.thread.join()
        self.progress.__exit__(*error)

    def _follow(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        self._tell_events()
        self._tell_scores()
        new = [line for line in read_log(self.job.log) if line["step"] > self.seen]
        if new:
            last = new[-1]
            self.seen = last["step"]
            self.observe(new)
            show_training(self.job.method.name, last)
            loss = f"loss {last['loss/total']:.3f}, " if "loss/total" in last else ""
            self.progress.update(self.seen, f"{loss}{last['samples_per_second']:.0f} pairs/s")
            self._tell_left_out(last)
        elif self.seen <= self.start:
            self.progress.update(self.start, f"{self._what_goes_on()} ... {time.monotonic() - self.began:.0f} s")

    def _what_goes_on(self) -> str:
        """What is waited for before the first step is logged."""
        if place := place_of(self.job.out / RANKS, 0):
            return f"rank 0 {place}"
        return "starting 1 worker" if self.job.train.workers == 1 else f"starting {self.job.train.workers} workers"

    def _tell_events(self) -> None:
        with suppress(OSError):
            lines = (self.job.out / EVENTS).read_text(encoding="utf-8").split("\n")[:-1]
            for line in lines[self.events :]:
                self.progress.say(line)
            self.events = len(lines)

    def _tell_scores(self) -> None:
        if self.job.tuning is None:
            return
        for step, score in read_scores(self.job.out).items():
            if self.scored.get(step) != score[AVERAGE]:
                self.scored[step] = score[AVERAGE]
                self.observe([score])
                self.progress.say(f"step {step}: {score[AVERAGE]:.1f} mIoU on the tuning split")

    def _tell_left_out(self, line: dict[str, Any]) -> None:
        bad, skipped = int(line.get("bad_samples", 0)), int(line.get("skipped_steps", 0))
        if bad > self.bad:
            self.progress.say(f"samples that cannot be used are left out: {bad} by now, named in {self.job.bad_samples}")
        if skipped > self.skipped:
            self.progress.say(f"steps were skipped, as a loss or gradient is not finite: {skipped} by now")
        self.bad, self.skipped = bad, skipped
