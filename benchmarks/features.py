"""What the features stage costs and brings: images a second, bytes an image, and training on features beside one on pixels.

    python benchmarks/features.py [--samples 768] [--size 224] [--batch 32] [--steps 6] [--rounds 5]

Talk2DINO around a ViT-S/14 with registers and a small CLIP, both with random weights, on drawn pictures. Features are made in
this process, then by the stage's own workers on Ray, one a core, whose start counts. Then trainings on pixels and on features
take so many steps in turn; the first step of each does not count. Printed are medians over rounds, and the least and most.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from gpu_inputs import write_shards
from safetensors.torch import save_file

from cluster.data import run_on_ray
from cluster.features import MILLISECONDS, Made, plan_features
from cluster.session import SessionConfig, close_session
from cluster.train_config import RayTrainJob, TrainConfig
from filtering.shards import run_local
from owseg.augmentation import AugmentConfig
from owseg.encoders import PRETRAIN, EncoderConfig, build_encoder
from owseg.engine import TorchEngine
from owseg.fit import phase_groups
from owseg.left_out import BadSamples
from owseg.methods.talk2dino import Talk2DinoConfig
from owseg.optim import OptimConfig
from owseg.phases import Phase
from owseg.training import build, loader
from owseg.vit import VitSize

ROOT = Path(__file__).parents[1]
TOWER = "vit_small_patch14_reg4_dinov2.lvd142m"


def job_in(home: Path, args: argparse.Namespace) -> RayTrainJob:
    """The training, with its shards and its image tower's weights in a folder."""
    config = Talk2DinoConfig(
        image_tower=TOWER,
        image_size=VitSize(image_size=args.size),
        image_weights=str(home / "vit.safetensors"),
        phases=(Phase(steps=args.steps, train=("projection.",)),),
        optim=OptimConfig(batch_size=args.batch, lr=1e-4, min_lr=1e-4, lr_batch=0, warmup=0, eps=1e-8),
        augment=AugmentConfig(size=args.size, crop="centre", rand_augment="", erase=0.0, reduced_decoding=False),
    )
    encoder = EncoderConfig(model=str(ROOT / "configs" / "miniature_clip.json"), pretrained=PRETRAIN)
    torch.manual_seed(0)
    tower = config.build(build_encoder(encoder)).image.vit
    save_file({name: value.contiguous() for name, value in tower.state_dict().items()}, config.image_weights)
    side = args.size + args.size // 7
    shards = write_shards(home / "tars", args.samples, (side, side), args.samples // 8)
    return RayTrainJob(
        method=config, encoder=encoder, shards=tuple(shards), out=home / "train", train=TrainConfig(features="float16")
    )


class Step(NamedTuple):
    """What a step took, and came to."""

    wall: float
    """Milliseconds."""
    cpu: float
    """Milliseconds of processor time."""
    loss: float


def steps_of(job: RayTrainJob) -> Iterator[Step]:
    """The steps of a training; what the first took is no step's."""
    method = build(job)
    (scheduled,) = job.scheduled_phases
    (groups,) = phase_groups(method, job.method.phases, job.method.optim)
    engine = TorchEngine(method.train(), groups, job.method.optim)
    batches = loader(job, method, 0, 1, BadSamples(job.bad_samples, 0.0, write=False))(scheduled, 0)
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        loss = float(engine.step(batch, 1e-4)["contrast"])
        yield Step(1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu), loss)
        wall, cpu = time.perf_counter(), time.process_time()


def rate_of(made: Made) -> float:
    """Images in a second of one worker."""
    return 1000 * made.new / sum(marker.counts[MILLISECONDS] for marker in made.markers)


def told(values: list[float], digits: int = 1) -> str:
    """Median, least and most."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=768)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        job = job_in(home, args)
        plan = plan_features(job)
        began = time.process_time()
        alone = plan.make(home / "alone", run_local)
        spent = 1e3 * (time.process_time() - began) / alone.new
        print(f"one process: {rate_of(alone):.1f} images/s, {spent:.1f} ms of processor time an image", flush=True)
        spread = plan.make(home / "spread", run_on_ray(SessionConfig(num_cpus=args.cores)))
        close_session()
        size = sum(sum(marker.sizes.values()) for marker in spread.markers)
        stage, with_start = args.cores * rate_of(spread), spread.new / spread.seconds
        print(
            f"the stage on {args.cores} cores: {stage:.1f} images/s, with its start {with_start:.1f} "
            f"({spread.new} images in {spread.seconds:.0f} s); {size / spread.new:.0f} bytes an image",
            flush=True,
        )
        rounds = [(list(steps_of(job)), list(steps_of(replace(job, features=home / "spread")))) for _ in range(args.rounds)]
        for kind in ("wall", "cpu"):
            pairs = [tuple(median(getattr(step, kind) for step in some[1:]) for some in round_) for round_ in rounds]
            pixels, features = (told([pair[place] for pair in pairs]) for place in (0, 1))
            name = "time" if kind == "wall" else "processor time"
            print(f"a step of {args.batch}, {name}: {pixels} ms on pixels, {features} ms on features", flush=True)
            print(f"  ratio {told([pair[0] / pair[1] for pair in pairs])}", flush=True)
        apart = max(abs(one.loss - other.loss) for pair in rounds for one, other in zip(*pair, strict=True))
        print(f"losses differ by {apart:.1e} at most", flush=True)


if __name__ == "__main__":
    main()
