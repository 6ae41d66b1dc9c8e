"""ViL-Seg's clusters against k-means on the features of its untrained encoder, and of its trained one.

    python benchmarks/vilseg_kmeans.py RUN [RUN ...] OUT

RUN: folders of finished runs on the miniature world that trained ViL-Seg (seeds of one setting, say). K-means (k-means++, the
training corpus' images, as many clusters as the head has) takes the head's place: its nearest centre is a linear layer's
largest output. All three draw regions in the same code; `oracle` names each by the label that it covers most of, `mIoU` as
the texts do.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from scipy.cluster.vq import kmeans2

from cluster.evaluate import Contender, evaluate
from filtering.files import write_json
from owseg.checkpoint import Checkpoint, read_model
from owseg.data import CaptionBatches
from owseg.evaluation.metrics import mean_iou
from owseg.fit import WEIGHTS, learned_state, load_learned
from owseg.methods.vilseg import VilSeg, VilSegConfig
from owseg.shards import ShardReader
from owseg.training import shards_of
from pipelines.app.config import from_dict
from pipelines.app.settings import Config

IMAGES = 512
"""Whose patches k-means sees."""


def fit_clusters(method: VilSeg, run: Path, checkpoint: Checkpoint, seed: int) -> None:
    """Put k-means on the features of the method's encoder in the place of its clustering head."""
    batches = CaptionBatches(
        ShardReader(list(shards_of(run / "shards"))),
        method.tokenize,
        method.config.augment,
        normalisation=checkpoint.normalisation,
        batch_size=IMAGES,
        seed=seed,
    )
    with torch.no_grad():
        patches = method.eval().image(batches[0].image).patches.flatten(0, 1)
    centres, _ = kmeans2(patches.double().numpy(), method.config.clusters, minit="++", seed=seed, iter=50)
    found = torch.from_numpy(centres).float()
    with torch.no_grad():  # the nearest centre c of x has the largest 2 c x - |c|^2
        method.clusters.weight.copy_(2 * found)
        method.clusters.bias.copy_(-found.square().sum(dim=1))


def contenders_of(run: Path, out: Path) -> list[Contender]:
    """The trained head, and k-means on the encoder as it began and as it ended."""
    checkpoint = read_model(run / "train" / "vilseg")
    config, encoder = checkpoint.method, checkpoint.encoder
    assert isinstance(config, VilSegConfig)
    assert checkpoint.weights is not None
    seed = int(yaml.safe_load((run / "config.yaml").read_text())["seed"])
    found = [Contender(name=f"{run.name}-head", method=config, encoder=encoder, weights=checkpoint.weights)]
    for name, trained in (("untrained", False), ("trained", True)):
        torch.manual_seed(seed)  # the very weights that training began with
        method = config.build(None)
        if trained:
            load_learned(method, config.phases, checkpoint.weights)
        fit_clusters(method, run, checkpoint, seed)
        weights = out / f"{run.name}-{name}" / WEIGHTS
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.clone() for key, value in learned_state(method, config.phases).items()}, weights)
        found.append(Contender(name=f"{run.name}-kmeans-{name}", method=config, encoder=encoder, weights=weights))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=lambda text: Path(text).resolve(), metavar="RUN")
    parser.add_argument("out", type=lambda text: Path(text).resolve())
    arguments = parser.parse_args()
    contenders = [contender for run in arguments.runs for contender in contenders_of(run, arguments.out)]
    config = from_dict(Config, yaml.safe_load((arguments.runs[0] / "config.yaml").read_text()))
    benchmarks = arguments.runs[0] / "world" / "benchmarks"
    protocol = replace(
        config.evaluate, root=str(benchmarks), classes=str(benchmarks / "classes"), thresholds=(), oracle=True, synonyms=""
    )
    scores = evaluate(contenders, protocol, config.session, arguments.out)
    told = {}
    for name, row in scores.items():
        told[name] = {
            "mIoU": fmean(mean_iou(score.counts) for score in row.values()),
            "oracle_mIoU": fmean(mean_iou(score.oracle) for score in row.values()),
            "regions_per_image": float(np.mean([score.regions / len(score.images) for score in row.values()])),
        }
    write_json(arguments.out / "kmeans.json", told)
    print("| run and clusters | mIoU | oracle mIoU | regions an image |\n|---|---|---|---|")
    for name, values in told.items():
        print(f"| {name} | {values['mIoU']:.1f} | {values['oracle_mIoU']:.1f} | {values['regions_per_image']:.1f} |")


if __name__ == "__main__":
    main()
