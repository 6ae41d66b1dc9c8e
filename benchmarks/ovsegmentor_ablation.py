"""What each loss of OVSegmentor and the filtering of its corpus are worth on the miniature world, over several seeds.

    python benchmarks/ovsegmentor_ablation.py RUN OUT [--seeds 0,1,2] [--steps 600,250,120] [--processes 2]

RUN is the folder of a finished demo run (configs/demo.yaml): its corpus, its pretrained CLIP and its world are used and not
changed. All variants take the same steps over the same batches, in all phases; what a variant leaves out has weight 0:

    contrast     image-caption contrast alone
    entity       + masked entity completion
    mask         + cross-image mask consistency, in the last phase: the whole method
    unfiltered   the whole method, on all links of the same world that mention a visible thing: no caption rules, and any
                 visual noun is an entity. (Captions without one have no entity to share, and stay out here, too.)

A training is a process with one thread, --processes at a time; each is told in OUT/<variant>-<seed>/. Scores are
those of the eight benchmarks under the demo's protocol. Writes OUT/ablation.json, .md and .png; what is finished is not done
again, so a run that was stopped goes on. Other settings want another OUT.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cluster.evaluate import Contender, evaluate
from cluster.session import SessionConfig
from cluster.train import shards_of
from owseg.data import Batch, CaptionBatches, ShardReader
from owseg.encoders import EncoderConfig, load_encoder
from owseg.engine import Span, TorchEngine
from owseg.evaluation.metrics import mean_iou
from owseg.evaluation.presets import EvaluateConfig, summary_of
from owseg.fit import WEIGHTS, fit, learned_state
from owseg.methods.ovsegmentor import OvSegmentor
from pipelines.config import load
from pipelines.settings import Config

REPO = Path(__file__).resolve().parents[1]
DEMO = REPO / "configs" / "demo.yaml"
VARIANTS: dict[str, dict[str, float]] = {
    "contrast": {"label_weight": 0.0, "entity_weight": 0.0, "mask_weight": 0.0},
    "entity": {"label_weight": 0.0, "mask_weight": 0.0},
    "mask": {"label_weight": 0.0},
    "unfiltered": {"label_weight": 0.0},
}
"""What each leaves out; the multi-label loss, which is the demo's and not the paper's, all of them."""
UNFILTERED = ("filter.rules=[]", "filter.top_k=1000000", "filter.min_count=1", "tracking.enabled=false")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training."""

    variant: str
    seed: int
    method: OvSegmentor
    encoder: EncoderConfig
    shards: tuple[Path, ...]
    out: Path

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.seed}"


def unfiltered_shards(run: Path, out: Path) -> Path:
    """The folder of shards of the run's world without filtering, made by the project's own verb."""
    folder = out / "unfiltered"
    if not (folder / "download.done.json").is_file():
        if not (folder / "world").is_dir():
            shutil.copytree(run / "world", folder / "world.part", copy_function=os.link, dirs_exist_ok=True)
            (folder / "world.part").rename(folder / "world")
        verb = [sys.executable, "pipelines/download.py", "--config", str(DEMO), f"run_dir={folder}", *UNFILTERED]
        subprocess.run(verb, cwd=REPO, check=True)
    return folder / "shards"


def list_jobs(arguments: argparse.Namespace, config: Config) -> list[Job]:
    """The trainings, seed by seed, so that a table can be read before all are done."""
    weights = arguments.run / "train" / "clip" / "encoder.safetensors"
    encoder = replace(config.encoder, model=str(REPO / config.encoder.model), pretrained=str(weights))
    method = config.models.ovsegmentor
    method = replace(
        method, phases=tuple(replace(phase, steps=n) for phase, n in zip(method.phases, arguments.steps, strict=True))
    )
    shards = dict.fromkeys(arguments.variants, arguments.run / "shards")
    if "unfiltered" in arguments.variants:
        shards["unfiltered"] = unfiltered_shards(arguments.run, arguments.out)
    return [
        Job(
            variant=name,
            seed=seed,
            method=replace(method, **VARIANTS[name]),  # type: ignore[arg-type] -- all of them are weights
            encoder=encoder,
            shards=tuple(shards_of(shards[name])),
            out=arguments.out / f"{name}-{seed}",
        )
        for seed in arguments.seeds
        for name in arguments.variants
    ]


def train(job: Job) -> float:
    """Train and save; returns the seconds it took. A finished training is left as it is, if it is of the same settings."""
    finished, settings = job.out / WEIGHTS, json.loads(json.dumps(asdict(job.method)))
    if finished.is_file():
        told = json.loads((job.out / "training.json").read_text())
        if told["settings"] != settings:
            raise SystemExit(f"{job.out}: was trained with other settings; give another OUT")
        return float(told["seconds"])
    torch.set_num_threads(1)
    began = time.monotonic()
    torch.manual_seed(job.seed)
    method = job.method.build(load_encoder(job.encoder))
    reader = ShardReader(job.shards, entities=True)
    log: list[dict[str, float]] = []

    def batches(span: Span, step: int) -> Iterator[Batch]:
        drawn = CaptionBatches(
            reader,
            method.tokenize,
            span.phase.augment or job.method.augment,
            mean=job.encoder.mean,
            std=job.encoder.std,
            batch_size=span.stretch.optim.batch_size,
            seed=job.seed,
            start=span.stretch.start,
            stretch=span.stretch.number,
            prepare=method.prepare,
            partners=span.phase.partners,
        )
        return map(drawn.__getitem__, range(step, span.stop))

    def on_log(step: int, losses: dict[str, float], lr: float) -> None:
        log.append({"step": step, "lr": lr, **losses})

    def make_engine(groups: Any, optim: Any) -> TorchEngine:
        return TorchEngine(method, groups, optim)

    fit(method, job.method.phases, job.method.optim, make_engine, batches, seed=job.seed, on_log=on_log)
    seconds = time.monotonic() - began
    job.out.mkdir(parents=True, exist_ok=True)
    told = {"settings": settings, "samples": len(reader), "seconds": seconds, "log": log}
    (job.out / "training.json").write_text(json.dumps(told, indent=1) + "\n")
    state = {name: tensor.clone() for name, tensor in learned_state(method, job.method.phases).items()}
    save_file(state, job.out / "part.safetensors")
    (job.out / "part.safetensors").replace(finished)
    return seconds


def score(jobs: list[Job], settings: EvaluateConfig, session: SessionConfig, out: Path) -> dict[str, dict[str, float]]:
    """mIoU by training and benchmark, with their mean as "average"."""
    contenders = [Contender(name=job.name, method=job.method, encoder=job.encoder, weights=job.out / WEIGHTS) for job in jobs]
    scores = evaluate(contenders, settings, session, out)
    found = {name: {dataset: mean_iou(score.counts) for dataset, score in row.items()} for name, row in scores.items()}
    return {name: row | {"average": statistics.fmean(row.values())} for name, row in found.items()}


def table(scores: dict[str, dict[str, float]], variants: list[str], seeds: list[int]) -> str:
    """Markdown: a row for each variant, mean and (lowest..highest) over its seeds."""
    columns = list(next(iter(scores.values())))
    lines = ["| variant | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for variant in variants:
        cells = []
        for column in columns:
            values = [scores[f"{variant}-{seed}"][column] for seed in seeds]
            cells.append(f"{statistics.fmean(values):.1f} ({min(values):.1f}..{max(values):.1f})")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(scores: dict[str, dict[str, float]], variants: list[str], seeds: list[int], path: Path) -> None:
    """A dot for each training's average mIoU, a line at each variant's mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for place, variant in enumerate(variants):
        values = [scores[f"{variant}-{seed}"]["average"] for seed in seeds]
        axes.scatter([place] * len(values), values, color="tab:blue", alpha=0.7)
        axes.hlines(statistics.fmean(values), place - 0.2, place + 0.2, color="black")
    axes.set_xticks(range(len(variants)), variants)
    axes.set_ylabel("average mIoU (%)")
    axes.set_title(f"OVSegmentor on the miniature world, seeds {', '.join(map(str, seeds))}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=lambda text: Path(text).resolve(), help="folder of a finished demo run")
    parser.add_argument("out", type=lambda text: Path(text).resolve())
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(VARIANTS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument(
        "--steps",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[600, 250, 120],
        help="of each of the demo's phases",
    )
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time")
    parser.add_argument("--limit", type=int, default=0, help="images of each benchmark; 0 = all")
    parser.add_argument("settings", nargs="*", help="of the demo, to be changed for all: models.ovsegmentor.groups=6")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"

    config = load(Config, DEMO, arguments.settings)
    arguments.out.mkdir(parents=True, exist_ok=True)
    jobs = list_jobs(arguments, config)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for job, seconds in zip(jobs, pool.map(train, jobs), strict=True):
            print(f"{job.name}: trained in {seconds:.0f} s", flush=True)
    benchmarks = arguments.run / "world" / "benchmarks"
    protocol = replace(
        config.evaluate, root=str(benchmarks), classes=str(benchmarks / "classes"), thresholds=(), limit=arguments.limit
    )
    scores = score(jobs, protocol, config.session, arguments.out / "evaluate")
    lines = table(scores, arguments.variants, arguments.seeds)
    samples = {job.name: json.loads((job.out / "training.json").read_text())["samples"] for job in jobs}
    told = {
        "protocol": summary_of(protocol),
        "steps": arguments.steps,
        "batch_size": [(phase.optim or jobs[0].method.optim).batch_size for phase in jobs[0].method.phases],
        "samples": samples,
        "mIoU": scores,
    }
    (arguments.out / "ablation.json").write_text(json.dumps(told, indent=1) + "\n")
    (arguments.out / "ablation.md").write_text(lines + "\n")
    draw(scores, arguments.variants, arguments.seeds, arguments.out / "ablation.png")
    print(lines)


if __name__ == "__main__":
    main()
