"""Scoring as Ray tasks: parts of a benchmark are scored anywhere, kept on disk, and merged by addition."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.capacity import await_room, on_nodes, room
from cluster.inputs import bring_here
from cluster.progress import Progress
from cluster.run_log import Ticket, join, ticket
from cluster.session import SessionConfig, ensure_session, is_shared, selector_of
from cluster.without_wandb import without_wandb
from filtering.files import digest_of, digest_of_file
from owseg import InputError
from owseg.checkpoint import files_at
from owseg.costs import forget_peak_memory, peak_memory_mb
from owseg.encoders import EncoderConfig, architecture
from owseg.evaluation.check import refuse_unfit
from owseg.evaluation.datasets import Item, list_items
from owseg.evaluation.inference import embed_queries, texts_of
from owseg.evaluation.pictures import draw_prediction, draw_sweep
from owseg.evaluation.protocols import EvaluateConfig, protocol_of, summary_of
from owseg.evaluation.score_file import DamagedError, read_score, write_score
from owseg.evaluation.scoring import Score, best_median_worst, score_items
from owseg.fields import path_settings, training_only_settings
from owseg.method_config import MethodConfig
from owseg.normalisation import Normalisation
from owseg.segmenter import Segmenter, load_segmenter, shortened_names
from storage.copies import Travelling, at, present, pulled, travelling, version_of

ITEMS_PER_PART = 20
FORMAT = 3
"""Of the part files: bumped where their contents or the evaluator's arithmetic change, so that older ones are not read."""
SECONDS_BETWEEN_LOOKS = 1.0
CPUS_PER_WORKER = 0.5
WITH_GPU = {"GPU": 1.0, "CPU": CPUS_PER_WORKER}
START_SECONDS = 50.0
"""How long to wait for a GPU, or a node on its way that may have one."""


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
            given = {"model": architecture(self.encoder), "pretrained": pretrained.name}
            settings["encoder"] = asdict(self.encoder) | given  # the same CLIP is the same, whichever file describes it
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

    @property
    def live(self) -> Path:
        """Where a worker says how far it is with the part."""
        return self.file.with_name(f".{self.file.stem}.live")

    def read(self, config: EvaluateConfig) -> Score:
        """What the part's file holds. Raises DamagedError where it is not as it was written."""
        benchmark = protocol_of(config, self.dataset).benchmark
        ids = [item.id for item in self.items]
        return read_score(self.file, ids, len(benchmark.names), len(benchmark.scored), oracle=config.oracle)

    def usable(self, config: EvaluateConfig) -> bool:
        """Whether an earlier run's file holds what this one asks for: what it skipped must not stay out unasked."""
        if not self.file.exists():
            return False
        try:
            return not self.read(config).skipped or config.unreadable == "skip"
        except DamagedError as error:
            print(f"evaluate: {error}; it is scored again", flush=True)
            return False


def evaluate(
    contenders: list[Contender],
    config: EvaluateConfig,
    session: SessionConfig,
    out: Path,
    observe: Callable[[str, int], None] = lambda name, done: None,
) -> dict[str, dict[str, Score]]:
    """Scores by contender and dataset. Parts that an earlier run finished are read back; Ray starts only if some are left.

    observe: called with a contender's name and how many of its images are scored, after each part.

    Raises InputError that names a missing or unreadable file, or a set in which nothing can be scored.
    """
    parts = list_parts(contenders, config, out)
    todo = [part for part in parts if not part.usable(config)]
    if todo:
        _look_at_files(todo, config)
        total, left = (sum(len(part.items) for part in some) for some in (parts, todo))
        with Progress("evaluate", total=total, unit="images", start=total - left) as progress:
            under_way = _UnderWay(todo, progress)
            scored = Counter(part.contender.name for part in parts if part not in todo for _ in part.items)
            for part in _score_on_ray(todo, config, session, under_way.look):
                under_way.finished(part)
                scored[part.contender.name] += len(part.items)
                observe(part.contender.name, scored[part.contender.name])
    scores: dict[str, dict[str, Score]] = {}
    for part in parts:
        row = scores.setdefault(part.contender.name, {})
        score = part.read(config)
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
    return [[path.name, path.stat().st_size, version_of(path)] for path in files]


def _look_at_files(todo: list[Part], config: EvaluateConfig) -> None:
    """Decode all that is to be scored, before hours go by. Raises InputError that names what cannot be."""
    items: dict[str, dict[Item, None]] = {}
    for part in todo:
        items.setdefault(part.dataset, {}).update(dict.fromkeys(part.items))
    total = sum(map(len, items.values()))
    with Progress("evaluate, looking at the files", total=total, unit="images") as progress:
        for dataset, some in items.items():
            progress.update(progress.done, dataset)
            benchmark = protocol_of(config, dataset).benchmark
            refuse_unfit(benchmark, [*some], unreadable=config.unreadable, decode_all=True, advance=progress.advance)


class _UnderWay:
    """Shows finished parts and those in work on `progress`, from what their workers leave beside the parts' files."""

    def __init__(self, todo: list[Part], progress: Progress) -> None:
        self.left, self.progress = {part.file: part for part in todo}, progress
        self.done, self.since, self.begun = progress.done, time.monotonic(), False
        for part in todo:  # of a run that was killed
            part.live.unlink(missing_ok=True)

    def finished(self, part: Part) -> None:
        del self.left[part.file]
        self.done += len(part.items)
        self.look(f"{part.contender.name} {part.dataset}")

    def look(self, note: str = "") -> None:
        """Count what is done of the parts in work; the last that one of them says is shown."""
        done = self.done
        for part in self.left.values():
            with suppress(OSError, ValueError):  # not begun, just ended, or half written
                count, _, doing = part.live.read_text(encoding="utf-8").partition(" ")
                done += min(int(count), len(part.items))
                note = f"{part.contender.name} {part.dataset}{doing}"
        self.begun = self.begun or bool(note)
        if not self.begun:
            note = f"starting workers ... {time.monotonic() - self.since:.0f} s"
        self.progress.update(max(done, self.progress.done), note)


def _score_on_ray(todo: list[Part], config: EvaluateConfig, session: SessionConfig, look: Callable[[], None]) -> Iterator[Part]:
    """Each part when it is done; `look` is called now and then."""
    ensure_session(session)
    import ray
    from ray.util import ActorPool

    if config.use_gpu and is_shared(session):
        _await_gpu(selector_of(session.train_label))
    workers, gpu = evaluators(ray.nodes(), config, session)
    actor = ray.remote(Evaluator).options(
        num_cpus=CPUS_PER_WORKER, num_gpus=int(gpu), label_selector=selector_of(session.train_label)
    )
    if copy := at(todo[0].file):
        copy.push()  # workers on other machines read what this process wrote
    pool = ActorPool([actor.remote(config, gpu, travelling(), ticket()) for _ in range(min(len(todo), workers))])
    for part in todo:
        pool.submit(lambda worker, part: worker.score.remote(part), part)
    while pool.has_next():
        try:
            part = pool.get_next_unordered(timeout=SECONDS_BETWEEN_LOOKS)
            present(part.file)
            yield part
        except TimeoutError:
            look()


def evaluators(nodes: list[dict[str, Any]], config: EvaluateConfig, session: SessionConfig) -> tuple[int, bool]:
    """How many workers score at once, one for each GPU or core, and whether they have GPUs.

    Nodes without `session.train_label` do not count: workers for their cores would wait, and start more of the others.
    """
    label = selector_of(session.train_label)
    gpus = room(nodes, WITH_GPU, label) if config.use_gpu else 0
    return max(1, gpus or room(nodes, {"CPU": 1.0}, label)), gpus > 0


def _await_gpu(label: dict[str, str] | None) -> None:
    """Wait for a first GPU, which an autoscaler may bring. Raises InputError where none comes."""
    growth = await_room(
        1,
        WITH_GPU,
        label,
        "evaluation on a GPU",
        patience=START_SECONDS,
        say=lambda line: print(f"evaluate: {line}", flush=True),
    )
    if growth is not None:
        raise InputError(
            f"evaluate.use_gpu: the Ray cluster has no GPU{on_nodes(label)}; give it a node that has one, or score on its CPUs "
            f"with evaluate.use_gpu=false{growth.why_not}"
        )


class Evaluator:
    """The Ray actor: keeps the contender it last scored, so that weights load and class names embed once."""

    def __init__(
        self, config: EvaluateConfig, use_gpu: bool, copies: Travelling | None = None, log: Ticket | None = None
    ) -> None:
        if copies:
            copies.attach()
        join(log)
        without_wandb()
        pulled(config.folder)
        torch.set_num_threads(1)
        self.config = config
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.contender: Contender | None = None
        self.segmenter: Segmenter | None = None
        self.classes: dict[str, Tensor] = {}
        self.shortened: dict[str, tuple[str, ...]] = {}

    def score(self, part: Part) -> Part:
        """Score a part and write its file. How far it is stands beside it: "<items done> <what is being done>"."""
        contender, protocol = part.contender, protocol_of(self.config, part.dataset)

        def tell(done: int, doing: str = "") -> None:
            part.live.write_text(f"{done} {doing}", encoding="utf-8")

        part.live.parent.mkdir(parents=True, exist_ok=True)
        if self.segmenter is None or self.contender != contender:
            tell(0, ": loading the method")
            bring_here(contender.method, contender.encoder, contender.weights)
            self.segmenter = load_segmenter(contender.method, contender.encoder, contender.weights).to(self.device)
            self.contender, self.classes = contender, {}
        if part.dataset not in self.classes:
            tell(0, f": embedding the names of {len(protocol.benchmark.names)} classes")
            try:
                self.shortened[part.dataset] = shortened_names(self.segmenter, texts_of(protocol))
            except InputError as error:
                raise InputError(f"{part.dataset}: {error}") from error
            self.classes[part.dataset] = embed_queries(self.segmenter, protocol)
        classes = self.classes[part.dataset]
        tell(0, ": reading the first image")
        forget_peak_memory(self.device)
        score = score_items(
            self.segmenter, protocol, part.items, self.config, contender.normalisation, classes=classes, watch=tell
        )
        score = replace(score, peak_memory_mb=peak_memory_mb(self.device), shortened=self.shortened[part.dataset])
        write_score(part.file, score)
        if copy := at(part.file):
            copy.push_files([part.file])
        part.live.unlink(missing_ok=True)
        return part


def draw(
    contenders: list[Contender], scores: dict[str, dict[str, Score]], config: EvaluateConfig, out: Path
) -> dict[str, list[Path]]:
    """Pictures by contender: the best, median and worst images over all of `scores`, and curves of threshold sweeps."""
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
            for rank, id_ in best_median_worst(*(of_all[dataset] for of_all in scores.values())).items():
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
