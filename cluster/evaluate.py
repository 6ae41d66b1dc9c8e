"""Scoring as Ray tasks: parts of a benchmark are scored anywhere, kept on disk, and merged by addition."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.progress import Progress
from cluster.session import SessionConfig, ensure_session, selector_of
from filtering.files import digest_of, digest_of_file, replacing
from owseg import InputError
from owseg.checkpoint import files_at
from owseg.costs import forget_peak_memory, peak_memory_mb
from owseg.encoders import EncoderConfig
from owseg.evaluation.datasets import Item, list_items
from owseg.evaluation.inference import embed_queries
from owseg.evaluation.pictures import draw_prediction, draw_sweep
from owseg.evaluation.protocols import EvaluateConfig, protocol_of, summary_of
from owseg.evaluation.scoring import Score, best_median_worst, score_items
from owseg.fields import path_settings, training_only_settings
from owseg.method_config import MethodConfig
from owseg.normalisation import Normalisation
from owseg.segmenter import Segmenter, load_segmenter

ITEMS_PER_PART = 20
FORMAT = 3
"""Of the part files: bumped where their contents or the evaluator's arithmetic change, so that older ones are not read."""
ARRAYS = ("counts", "boundary", "intersection", "union", "joint", "oracle")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the results table: a method, the encoder it is built around, and its trained weights where it has any."""

    name: str
    method: MethodConfig
    encoder: EncoderConfig
    normalisation: Normalisation = Normalisation()
    weights: Path | None = None

    def for_dataset(self, dataset: str) -> "Contender":
        """This entry with dataset-specific settings applied."""
        return replace(self, method=self.method.for_dataset(dataset))

    def fingerprint(self) -> str:
        """Changes whenever the row's numbers could."""
        left_out = training_only_settings(self.method)
        settings = {key: value for key, value in asdict(self.method).items() if key not in left_out}
        settings["normalisation"] = asdict(self.normalisation)
        files = [self.weights]
        if self.method.uses_clip:
            pretrained = Path(self.encoder.pretrained)
            settings["encoder"] = asdict(self.encoder) | {"pretrained": pretrained.name}
            files.append(pretrained)
        for key in sorted(path_settings(self.method) - left_out):  # a text tower's folder: its tokenizer has a say
            files += files_at(settings[key])
            settings[key] = Path(settings[key]).name
        return digest_of([settings, [digest_of_file(path) for path in files if path and path.is_file()]])


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some items of one benchmark, to be scored for one contender."""

    contender: Contender
    dataset: str
    items: tuple[Item, ...]
    file: Path

    def usable(self, config: EvaluateConfig) -> bool:
        """Whether an earlier run's file holds what this one asks for: what it skipped must not stay out unasked."""
        return self.file.exists() and (config.unreadable == "skip" or not _read(self.file).skipped)


def evaluate(
    contenders: list[Contender], config: EvaluateConfig, session: SessionConfig, out: Path
) -> dict[str, dict[str, Score]]:
    """Scores by contender and dataset. Parts that an earlier run finished are read back; Ray starts only if some are left.

    Raises InputError that names a missing or unreadable file, or a set in which nothing can be scored.
    """
    parts = list_parts(contenders, config, out)
    todo = [part for part in parts if not part.usable(config)]
    if todo:
        with Progress(
            "evaluate",
            total=sum(len(part.items) for part in parts),
            unit="images",
            start=sum(len(part.items) for part in parts) - sum(len(part.items) for part in todo),
        ) as progress:
            for part in _score_on_ray(todo, config, session):
                progress.advance(len(part.items), f"{part.contender.name} {part.dataset}")
    scores: dict[str, dict[str, Score]] = {}
    for part in parts:
        row = scores.setdefault(part.contender.name, {})
        score = _read(part.file)
        row[part.dataset] = row[part.dataset] + score if part.dataset in row else score
    for row in scores.values():
        for dataset, score in row.items():
            if not score.images:
                reason = next(iter(score.skipped.values()))
                raise InputError(f"{dataset}: none of its {len(score.skipped)} images can be read, the first: {reason}")
            if not score.counts[protocol_of(config, dataset).benchmark.scored].any():
                cure = "raise evaluate.limit" if config.limit else "look at the label maps"
                raise InputError(f"{dataset}: no pixel of its label maps has a class that is scored; {cure}")
    return scores


def list_parts(contenders: list[Contender], config: EvaluateConfig, out: Path) -> list[Part]:
    """The whole work in parts, a contender after the other, so that workers load each once.

    A part's file is named by all that its contents depend on, so a changed image costs one part and no more.
    """
    root = config.folder.resolve()
    fingerprints = [contender.fingerprint() for contender in contenders]
    parts = []
    for dataset in config.names:
        protocol = protocol_of(config, dataset)
        items = list_items(protocol.benchmark, root)[: config.limit or None]
        for start in range(0, len(items), ITEMS_PER_PART):
            chunk = tuple(items[start : start + ITEMS_PER_PART])
            read = [FORMAT, asdict(protocol), config.thresholds, config.oracle, fingerprint_of(chunk)]
            for rank, contender in enumerate(contenders):
                digest = digest_of([fingerprints[rank], read])[:16]
                file = out / "parts" / contender.name / f"{dataset}-{start:06}-{digest}.npz"
                parts.append((rank, Part(contender=contender.for_dataset(dataset), dataset=dataset, items=chunk, file=file)))
    return [part for _, part in sorted(parts, key=lambda ranked: ranked[0])]


def fingerprint_of(items: Iterable[Item]) -> list[list[object]]:
    """What identifies the files of a benchmark without reading them: names, sizes and times."""
    files = [path for item in items for path in (item.image, item.label)]
    return [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files]


def _score_on_ray(todo: list[Part], config: EvaluateConfig, session: SessionConfig) -> Iterator[Part]:
    ensure_session(session)
    import ray
    from ray.util import ActorPool

    gpus = int(ray.cluster_resources().get("GPU", 0)) if config.use_gpu else 0
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
        self.contender: Contender | None = None
        self.segmenter: Segmenter | None = None
        self.classes: dict[str, Tensor] = {}

    def score(self, part: Part) -> Part:
        """Score a part and write its file."""
        contender, protocol = part.contender, protocol_of(self.config, part.dataset)
        if self.segmenter is None or self.contender != contender:
            self.segmenter = load_segmenter(contender.method, contender.encoder, contender.weights).to(self.device)
            self.contender, self.classes = contender, {}
        if part.dataset not in self.classes:
            self.classes[part.dataset] = embed_queries(self.segmenter, protocol)
        classes = self.classes[part.dataset]
        forget_peak_memory(self.device)
        score = score_items(self.segmenter, protocol, part.items, self.config, contender.normalisation, classes=classes)
        _write(part.file, replace(score, peak_memory_mb=peak_memory_mb(self.device)))
        return part


def draw(
    contenders: list[Contender], scores: dict[str, dict[str, Score]], config: EvaluateConfig, out: Path
) -> dict[str, list[Path]]:
    """Pictures by contender: the best, median and worst image of each benchmark, and the curves of the threshold sweeps."""
    pictures: dict[str, list[Path]] = {}
    root = config.folder.resolve()
    for contender in contenders:
        loaded: Contender | None = None
        row, paths = scores[contender.name], pictures.setdefault(contender.name, [])
        for dataset, score in row.items():
            if loaded != (wanted := contender.for_dataset(dataset)):
                segmenter, loaded = load_segmenter(wanted.method, wanted.encoder, wanted.weights), wanted
            protocol = protocol_of(config, dataset)
            items = {item.id: item for item in list_items(protocol.benchmark, root)}
            classes = embed_queries(segmenter, protocol)
            for rank, id_ in best_median_worst(score).items():
                path = out / contender.name / f"{dataset}-{rank}.png"
                title = f"{contender.name} on {dataset}: {rank} image, {score.images[id_]:.1f} mIoU"
                draw_prediction(segmenter, protocol, items[id_], classes, contender.normalisation, path, title)
                paths.append(path)
        swept = {dataset: score for dataset, score in row.items() if score.thresholds}
        if swept:
            path = out / contender.name / "threshold_sweep.png"
            draw_sweep(swept, path, f"{contender.name}, {summary_of(config)}")
            paths.append(path)
    return pictures


def _write(path: Path, score: Score) -> None:
    arrays = {key: getattr(score, key) for key in ARRAYS}
    rest = {key: value for key, value in vars(score).items() if key not in ARRAYS}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays, rest=np.array(json.dumps(rest)))


def _read(path: Path) -> Score:
    with np.load(path) as stored:
        rest = json.loads(str(stored["rest"]))
        return Score(**{key: stored[key] for key in ARRAYS}, **rest | {"thresholds": tuple(rest["thresholds"])})
