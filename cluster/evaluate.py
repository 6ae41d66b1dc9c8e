"""Scoring as Ray tasks: parts of a benchmark are scored anywhere, kept on disk, and merged by addition."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.progress import Progress
from cluster.session import SessionConfig, ensure_session, selector_of
from filtering.stage import digest_of, digest_of_file
from owseg.encoders import EncoderConfig
from owseg.evaluation.datasets import Item, list_items
from owseg.evaluation.pictures import draw_prediction
from owseg.evaluation.protocol import EvaluateConfig
from owseg.evaluation.run import Score, benchmark_of, best_median_worst, score_items
from owseg.methods import Segmenter, SegmenterConfig, load_segmenter

ITEMS_PER_PART = 20


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the results table: a method, the encoder it stands on, and its trained weights where it has any."""

    name: str
    method: SegmenterConfig
    encoder: EncoderConfig
    weights: Path | None = None

    def fingerprint(self) -> str:
        """Changes whenever the row's numbers could."""
        pretrained = Path(self.encoder.pretrained)
        files = [path for path in (self.weights, pretrained if pretrained.is_file() else None) if path]
        settings = asdict(self.method) | {"encoder": asdict(self.encoder) | {"pretrained": pretrained.name}}
        # What only training reads has no say in what the weights predict.
        for key in ("phases", "optim", "augment"):
            settings.pop(key, None)
        return digest_of([settings, [digest_of_file(path) for path in files]])


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some items of one benchmark, to be scored for one contender."""

    contender: Contender
    dataset: str
    items: tuple[Item, ...]
    file: Path


def evaluate(
    contenders: list[Contender], config: EvaluateConfig, session: SessionConfig, out: Path, *, use_gpu: bool = False
) -> dict[str, dict[str, Score]]:
    """Scores by contender and dataset. Parts that an earlier run finished are read back; Ray starts only if some are left.

    Raises InputError that names a missing or unreadable file.
    """
    root = Path(config.root).resolve()
    parts = []
    for dataset in config.datasets:
        benchmark = benchmark_of(dataset, config)
        items = list_items(benchmark, root)[: config.limit or None]
        for contender in contenders:
            read = [fingerprint_of(items), benchmark.names, _protocol(config)]
            folder = out / "parts" / contender.name / digest_of([contender.fingerprint(), read])[:16]
            for start in range(0, len(items), ITEMS_PER_PART):
                chunk = tuple(items[start : start + ITEMS_PER_PART])
                parts.append(Part(contender=contender, dataset=dataset, items=chunk, file=folder / f"{dataset}-{start:06}.npz"))
    todo = [part for part in parts if not part.file.exists()]
    if todo:
        with Progress(
            "evaluate",
            total=sum(len(part.items) for part in parts),
            unit="images",
            start=sum(len(part.items) for part in parts if part not in todo),
        ) as progress:
            for part in _score_on_ray(todo, config, session, use_gpu):
                progress.advance(len(part.items), f"{part.contender.name} {part.dataset}")
    scores: dict[str, dict[str, Score]] = {}
    for part in parts:
        row = scores.setdefault(part.contender.name, {})
        score = _read(part.file)
        row[part.dataset] = row[part.dataset] + score if part.dataset in row else score
    return scores


def fingerprint_of(items: Iterable[Item]) -> list[list[object]]:
    """What identifies the files of a benchmark without reading them: names, sizes and times."""
    files = [path for item in items for path in (item.image, item.label)]
    return [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files]


def _protocol(config: EvaluateConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in ("short_side", "max_long_side", "window", "stride")}


def _score_on_ray(todo: list[Part], config: EvaluateConfig, session: SessionConfig, use_gpu: bool) -> Any:
    ensure_session(session)
    import ray
    from ray.util import ActorPool

    gpus = int(ray.cluster_resources().get("GPU", 0)) if use_gpu else 0
    workers = min(len(todo), gpus or max(1, int(ray.cluster_resources().get("CPU", 1))))
    actor = ray.remote(Evaluator).options(
        num_cpus=0.5, num_gpus=1 if gpus else 0, label_selector=selector_of(session.train_label)
    )
    pool = ActorPool([actor.remote(config, bool(gpus)) for _ in range(workers)])
    yield from pool.map_unordered(lambda worker, part: worker.score.remote(part), todo)


class Evaluator:
    """The Ray actor: keeps the contender it last scored, so that weights load and class names embed once."""

    def __init__(self, config: EvaluateConfig, use_gpu: bool) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.loaded: tuple[str, Segmenter] | None = None

    def score(self, part: Part) -> Part:
        """Score a part and write its file."""
        segmenter = self._segmenter(part.contender)
        benchmark = benchmark_of(part.dataset, self.config)
        score = score_items(segmenter, benchmark, part.items, self.config, part.contender.encoder)
        _write(part.file, score)
        return part

    def _segmenter(self, contender: Contender) -> Segmenter:
        if self.loaded is None or self.loaded[0] != contender.name:
            segmenter = load_segmenter(contender.method, contender.encoder, contender.weights)
            self.loaded = (contender.name, segmenter.to(self.device))
        return self.loaded[1]


def draw(
    contenders: list[Contender], scores: dict[str, dict[str, Score]], config: EvaluateConfig, out: Path
) -> dict[str, list[Path]]:
    """Overlays of the best, median and worst image of each benchmark, by contender."""
    pictures: dict[str, list[Path]] = {}
    root = Path(config.root).resolve()
    for contender in contenders:
        segmenter = load_segmenter(contender.method, contender.encoder, contender.weights)
        for dataset, score in scores[contender.name].items():
            benchmark = benchmark_of(dataset, config)
            items = {item.id: item for item in list_items(benchmark, root)}
            for rank, id_ in best_median_worst(score).items():
                path = out / contender.name / f"{dataset}-{rank}.png"
                title = f"{contender.name} on {dataset}: {rank} image, {score.images[id_]:.1f} mIoU"
                draw_prediction(segmenter, benchmark, items[id_], config, contender.encoder, path, title)
                pictures.setdefault(contender.name, []).append(path)
    return pictures


def _write(path: Path, score: Score) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, counts=score.counts, images=np.array(json.dumps(score.images)))
    os.replace(temporary, path)


def _read(path: Path) -> Score:
    with np.load(path) as stored:
        return Score(counts=stored["counts"], images=json.loads(str(stored["images"])))
