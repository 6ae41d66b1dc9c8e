"""Which checkpoint of a training is the best: each is scored on labelled tuning images beside training, in a Ray task.

The images must be none of those that scores are reported on. Ray Train runs one such task at a time, keeps a checkpoint until
its own has ended, and goes on with those that a killed driver left.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster import InputError
from cluster.inputs import bring_here
from filtering.files import replacing
from owseg.encoders import EncoderConfig
from owseg.evaluation.datasets import list_items
from owseg.evaluation.inference import embed_queries
from owseg.evaluation.metrics import mean_iou
from owseg.evaluation.pictures import draw_prediction
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from owseg.evaluation.scoring import score_items
from owseg.fit import WEIGHTS
from owseg.method_config import TrainableConfig
from owseg.normalisation import Normalisation
from owseg.segmenter import load_segmenter
from owseg.snapshots import step_of
from storage.copies import at, discard, pulled, travelling

if TYPE_CHECKING:
    from ray.train import Checkpoint

SCORES = "tuning.jsonl"
"""A JSON line for each step that was scored: {"step", "tuning/mIoU", "tuning/mIoU_<dataset>"...}, in percent."""
BEST = "best.{}.safetensors"
"""The weights with the best average so far, with their step."""
AVERAGE = "tuning/mIoU"
DRAWN = 4
"""Datasets of which an image is drawn at each checkpoint."""


def of_tuning(config: EvaluateConfig, root: str) -> EvaluateConfig:
    """How an evaluation's benchmarks are scored on a tuning split, laid out alike: the mIoU alone."""
    return replace(config, root=root, thresholds=(), oracle=False, bootstrap=0, pictures=False)


def content_of(config: EvaluateConfig) -> dict[str, list[list[object]]]:
    """What identifies the images of a tuning split wherever it lies: names and sizes by dataset."""
    items = {name: list_items(protocol_of(config, name).benchmark, config.folder) for name in config.names}
    files = {name: [path for item in some for path in (item.image, item.label)] for name, some in items.items()}
    return {name: [[path.name, path.stat().st_size] for path in some] for name, some in files.items()}


def read_scores(out: Path) -> dict[int, dict[str, Any]]:
    """A training's lines of `SCORES` by step. What is none, in a file that was damaged, counts as not scored."""
    try:
        lines = (out / SCORES).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            score = json.loads(line)
            found[int(score["step"])] = score | {AVERAGE: float(score[AVERAGE])}
    return dict(sorted(found.items()))


def best_weights(out: Path) -> tuple[int, Path] | None:
    """The step whose weights are kept as the best, and where they lie; None where none are."""
    kept = {int(file.name.split(".")[1]): file for file in out.glob(BEST.format("*")) if file.name.split(".")[1].isdigit()}
    return max(kept.items(), default=None)


def scorer(
    method: TrainableConfig, encoder: EncoderConfig, normalisation: Normalisation, config: EvaluateConfig, out: Path
) -> "Callable[[Checkpoint], dict[str, float]]":
    """What Ray Train calls with a checkpoint, in a task of its own: scores it, and keeps its weights where it is the best."""

    copies = travelling()

    def score(checkpoint: "Checkpoint") -> dict[str, float]:
        copies.attach()
        if copy := at(out):
            copy.pull(out, without=("checkpoints/*/*",), changed=True)
        pulled(config.folder)
        bring_here(method, encoder)
        torch.set_num_threads(1)
        with checkpoint.as_directory() as folder:
            step, weights = step_of(Path(folder)), Path(folder) / WEIGHTS
            found = score_weights(method, encoder, normalisation, config, weights, pictures_of(out, step))
            scores, kept = read_scores(out), best_weights(out)
            best = scores.get(kept[0]) if kept and kept[0] != step else None
            if best is None or found[AVERAGE] > best[AVERAGE]:
                _keep(out, step, weights)
        scores[step] = {"step": step, **found}
        with replacing(out / SCORES) as temporary:
            temporary.write_text("".join(json.dumps(scores[one]) + "\n" for one in sorted(scores)), encoding="utf-8")
        if copy:
            copy.push(out)
        return found

    return score


def _keep(out: Path, step: int, weights: Path) -> None:
    """Make a step's weights the kept ones."""
    own = out / BEST.format(step)
    with replacing(own) as temporary:
        shutil.copyfile(weights, temporary)
    for file in out.glob(BEST.format("*")):
        if file != own:
            discard(file)


def pictures_of(out: Path, step: int) -> Path:
    """The folder of the pictures that a step's weights drew: <dataset>.png, of the same images at each step."""
    return out / "pictures" / f"{step:08}"


def score_weights(
    method: TrainableConfig,
    encoder: EncoderConfig,
    normalisation: Normalisation,
    config: EvaluateConfig,
    weights: Path,
    pictures: Path,
) -> dict[str, float]:
    """The mIoU in percent of trained weights on each dataset, and their average. The first image of some is drawn.

    Raises InputError as `score_items`, and where a dataset has nothing that is scored.
    """
    root, device = config.folder.resolve(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, float] = {}
    loaded: TrainableConfig | None = None
    for dataset in config.names:
        if loaded != (wanted := method.for_dataset(dataset)):
            segmenter, loaded = load_segmenter(wanted, encoder, weights).to(device), wanted
        protocol = protocol_of(config, dataset)
        items = list_items(protocol.benchmark, root)[: config.limit or None]
        classes = embed_queries(segmenter, protocol)
        score = score_items(segmenter, protocol, items, config, normalisation, classes=classes)
        if not score.counts[protocol.benchmark.scored].any():
            raise InputError(f"evaluate.tuning: no pixel of {dataset}'s label maps has a class that is scored")
        found[f"{AVERAGE}_{dataset}"] = mean_iou(score.counts, protocol.benchmark.scored)
        if len(found) <= DRAWN:
            title = f"{method.name} on a tuning image of {dataset}"
            draw_prediction(segmenter, protocol, items[0], classes, normalisation, pictures / f"{dataset}.png", title)
    return {AVERAGE: sum(found.values()) / len(found), **found}
