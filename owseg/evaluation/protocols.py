"""The two protocols of the field as frozen presets, and what a benchmark becomes under one of them.

`tcl` is TCL's unified protocol (2212.00785): one size and one window everywhere, mmsegmentation's class names verbatim, and
one background rule that belongs to the method. `sclip` is what SCLIP (2312.01597), NACLIP, ClearCLIP, ProxyCLIP and their kin
share: smaller windows, sizes by data set, class names with synonyms, and a softmax over them. Numbers of the one must not be
compared with numbers of the other.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from owseg import InputError, near_miss
from owseg.evaluation.datasets import BENCHMARKS, DATASETS, EvalDataset, read_names
from owseg.evaluation.own_dataset import OwnDataset
from owseg.evaluation.synonyms import LEXICON, Synonyms, read_synonyms, synonym_file
from owseg.fields import check_range

Refinement = Literal["none", "pamr"]
MOST_GRID_SCALE = 4
"""Memory and time grow with the square of it, those of attention with its fourth power."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How an image is shown to a method: scaled so that its short side fits, then cut into overlapping windows (pixels).

    With a `grid_scale` the method sees each window enlarged by that factor, so that its grid of tokens is finer; its scores are
    brought back to the window's size. With `refine` they are then drawn to the window's edges.
    """

    short_side: int
    max_long_side: int = 2048
    window: int
    stride: int
    grid_scale: float = 1.0
    refine: Refinement = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.grid_scale <= MOST_GRID_SCALE:
            raise InputError(f"grid_scale: {self.grid_scale:g} is out of range; give a factor from 1 to {MOST_GRID_SCALE}")
        check_range(self, "short_side", "max_long_side", "window", "stride", least=1)
        if self.stride > self.window:
            raise InputError(f"stride: {self.stride} is larger than the window ({self.window}); give at most that")


@dataclass(frozen=True, kw_only=True)
class SoftmaxRule:
    """SCLIP's reading of scores: softmax of `scale` x score over all names; a class is as probable as its best synonym.

    Where there is a background class, foreground classes that win at most `min_share` of the foreground's pixels are dropped
    first, and pixels whose best class is less probable than `threshold` become background after that. Scores are meant to be
    cosines.
    """

    scale: float = 40.0
    threshold: float = 0.0
    min_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A benchmark as one preset scores it: what the evaluator needs beside a method and the files."""

    benchmark: EvalDataset
    """The data set, its classes under the names that the tables show."""
    view: View
    """Sizes and windows."""
    queries: tuple[str, ...]
    """The texts that are embedded, class by class; synonyms of a class lie side by side."""
    class_of_query: tuple[int, ...]
    """Label of each query's class. Without `softmax` the background has no query: the method owns its rule."""
    further: tuple[tuple[str, ...], ...] = ()
    """Further names of each query, whose embeddings are averaged with its own; () = no query has any."""
    softmax: SoftmaxRule | None = None
    """SCLIP's rule, or None: the highest score wins."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Where the benchmarks live and how they are scored."""

    root: str = ""
    """Folder that holds VOCdevkit, coco_stuff164k, cityscapes and ade; empty = the miniature world's benchmarks."""
    tuning: str = ""
    """Folder of a tuning split, laid out as `root`, for train.keep_best; empty = the miniature world's."""
    classes: str = ""
    """Folder of <dataset>.txt files with class names (commas part synonyms) that replace the preset's; empty = the preset's."""
    datasets: tuple[str | OwnDataset, ...] = tuple(BENCHMARKS)
    """Benchmarks to score, in the table's order; besides: {voc,context,coco_stuff}_unseen, the same with _all, context33, and
    own ones: {name: ..., images: DIR, labels: DIR, names: FILE}."""
    preset: Literal["tcl", "sclip"] = "tcl"
    """Protocol: TCL's, or the SCLIP family's with its sizes, synonyms and background rule; never compare across them."""
    short_side: int = 0
    """Images are scaled so that their short side has this many pixels; 0 = the preset's."""
    max_long_side: int = 0
    """... unless the long side would exceed this many pixels; 0 = the preset's."""
    window: int = 0
    """Side of the sliding window in pixels; 0 = the preset's."""
    stride: int = 0
    """Step of the sliding window in pixels; 0 = the preset's."""
    synonyms: str = ""
    """Names averaged with a class's own: a file of "class: name, name", a folder of <dataset>.txt, or lexicon; empty = none."""
    grid_scale: float = 1.0
    """How much larger than it is each window is shown to the method, for a finer grid of tokens: 1 to 4; costs its square."""
    refine: Refinement = "none"
    """What draws every method's window scores to the image's edges: none, or pamr."""
    use_gpu: bool = False
    """Score on the GPUs of the machine or cluster, one worker for each."""
    window_batch: int = 4
    """Windows that are segmented at once: memory and speed; scores change in their last bits at most."""
    thresholds: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
    """Background thresholds that are scored beside the method's own, on sets with a background class; [] = none."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What an image or label map that cannot be decoded does: stop the run, or be left out and counted."""
    limit: int = 0
    """Score only the first this many images of each set; 0 = all."""
    bootstrap: int = 1000
    """Resamples of the images that intervals of mIoU are read off, at least 100; 0 = no intervals."""
    oracle: bool = False
    """Also score each method's regions under their best names, which tells errors of grouping from errors of naming."""
    pictures: bool = True
    """Draw overlays of the best, median and worst image of each set."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the datasets."""
        return tuple(one if isinstance(one, str) else one.name for one in self.datasets)

    @property
    def own(self) -> dict[str, OwnDataset]:
        """Own datasets by name."""
        return {one.name: one for one in self.datasets if isinstance(one, OwnDataset)}

    @property
    def folder(self) -> Path:
        """`root` as a path, "~" spelled out."""
        return Path(self.root).expanduser()

    def __post_init__(self) -> None:
        if not self.datasets:
            raise InputError(f"datasets: there are none; name at least one of {', '.join(DATASETS)}")
        for name in self.datasets:
            if isinstance(name, str) and name not in DATASETS:
                raise InputError(f"datasets: {name!r} is none of {', '.join(DATASETS)}")
        if len(set(self.names)) != len(self.datasets):
            raise InputError("datasets: a benchmark is named twice")
        for field in ("short_side", "max_long_side", "window", "stride", "limit"):
            if getattr(self, field) < 0:
                raise InputError(f"{field}: {getattr(self, field)} is negative; give a positive number, or 0")
        check_range(self, "window_batch", least=1)
        if self.bootstrap != 0 and not MIN_DRAWS <= self.bootstrap <= MAX_DRAWS:
            many = "few" if self.bootstrap < MIN_DRAWS else "many"
            limits = f"at least {MIN_DRAWS}" if many == "few" else f"at most {MAX_DRAWS}"
            raise InputError(f"bootstrap: {self.bootstrap} resamples are too {many}; give {limits}, or 0 for no intervals")
        if len(set(self.thresholds)) != len(self.thresholds):
            raise InputError("thresholds: a value is given twice")
        for name in self.names:
            view_of(self, name)


MAX_DRAWS = 1_000_000
"""Resamples above which intervals take gigabytes, and get no better."""
MIN_DRAWS = 100
"""Resamples below which the ends of an interval of 95 % are made of two or three."""
OVERRIDES = ("short_side", "max_long_side", "window", "stride")
_NAMES = Path(__file__).with_name("names") / "sclip"
_SCLIP_SIDES = {"coco_stuff": 448, "cityscapes": 560}
_SCLIP_RULES = {
    "voc21": SoftmaxRule(scale=65.0, threshold=0.1, min_share=0.1),
    "context60": SoftmaxRule(scale=50.0, threshold=0.1),
    "coco_object": SoftmaxRule(scale=50.0, threshold=0.1),
}
"""The rest is scale 40 (the segmentor's default), threshold 0."""


def view_of(config: EvaluateConfig, name: str) -> View:
    """Sizes and windows of a benchmark: the preset's, with the config's own where it gives any.

    tcl: TCL's `configs`: 2048 x 448, window 448, stride 224. sclip: SCLIP's `configs/cfg_*.py` and `clip_segmentor.py`:
    2048 x 336 (COCO-Stuff 448, Cityscapes 560), window 224, stride 112.
    """
    if config.preset == "tcl":
        view = View(short_side=448, window=448, stride=224)
    else:
        view = View(short_side=_SCLIP_SIDES.get(_whole(config, name), 336), window=224, stride=112)
    sizes = {key: value for key in OVERRIDES if (value := getattr(config, key))}
    return replace(view, **sizes, grid_scale=config.grid_scale, refine=config.refine)


def protocol_of(config: EvaluateConfig, name: str) -> Protocol:
    """What `config` makes of a benchmark. Raises InputError for a missing or bad list of class names or synonyms."""
    benchmark, lines = _classes(config, name)
    found = _synonyms(config, name, lambda dataset: _classes(config, dataset)[0].names) if config.synonyms else {}
    skipped = 1 if config.preset == "tcl" and benchmark.background else 0
    queries = [(label, word) for label, line in enumerate(lines) if label >= skipped for word in synonyms(line)]
    return Protocol(
        benchmark=benchmark,
        view=view_of(config, name),
        queries=tuple(word for _, word in queries),
        class_of_query=tuple(label for label, _ in queries),
        further=_further(queries, benchmark, found) if found else (),
        softmax=_SCLIP_RULES.get(name, SoftmaxRule()) if config.preset == "sclip" else None,
    )


def _whole(config: EvaluateConfig, name: str) -> str:
    """The one of the eight that a row is a part of; an own dataset stands for itself."""
    return name if name in config.own else DATASETS[name].whole.name


def check_synonyms(config: EvaluateConfig, classes: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError where a file of synonyms is bad or names a class that none of its sets has.

    classes: the class names of each set.
    """
    if config.synonyms:
        for name in config.names:
            _synonyms(config, name, classes.__getitem__)


def _synonyms(config: EvaluateConfig, name: str, classes: Callable[[str], Sequence[str]]) -> Synonyms:
    """The synonyms for a benchmark. A file that serves several may name the classes of them all, the shipped one any class."""
    path = synonym_file(config.synonyms, _whole(config, name))
    if config.synonyms == LEXICON:
        return read_synonyms(path)
    asked_for = {_whole(config, dataset) for dataset in (name, *config.names)}
    served = [dataset for dataset in asked_for if synonym_file(config.synonyms, dataset) == path]
    return read_synonyms(path, {class_ for dataset in served for class_ in classes(dataset)})


def _further(queries: Sequence[tuple[int, str]], benchmark: EvalDataset, found: Synonyms) -> tuple[tuple[str, ...], ...]:
    """Further names for the first query of each class: (label, text) of all queries, class by class.

    A name that speaks for two classes of the set speaks for neither, unless it is the one's own.
    """
    own = [{benchmark.names[label], *(text for of, text in queries if of == label)} for label in range(len(benchmark.names))]
    more = [found.get(name.strip(), ()) for name in benchmark.names]
    speaks = Counter(word.casefold() for label, words in enumerate(own) for word in {*words, *more[label]})
    first = {label: number for number, (label, _) in reversed([*enumerate(queries)])}
    return tuple(
        tuple(word for word in more[label] if word not in own[label] and speaks[word.casefold()] == 1)
        if first[label] == number
        else ()
        for number, (label, _) in enumerate(queries)
    )


def synonyms(line: str) -> tuple[str, ...]:
    """The texts of one class. A name without a comma stays verbatim: mmsegmentation's "bed " keeps its space."""
    words = tuple(word.strip() for word in line.split(","))
    return tuple(filter(None, words)) if len(words) > 1 else (line,)


def summary_of(config: EvaluateConfig) -> str:
    """The protocol in a few words, for titles: "preset tcl, short side 96, window 96, stride 48"."""
    own = [f"{key.replace('_', ' ')} {value}" for key in OVERRIDES if (value := getattr(config, key))]
    if config.classes:
        own.append("own class names")
    if config.synonyms:
        own.append("synonyms of the lexicon" if config.synonyms == LEXICON else "own synonyms")
    if config.grid_scale != 1:
        own.append(f"grid scale {config.grid_scale:g}")
    if config.refine != "none":
        own.append(f"refined by {config.refine.upper()}")
    if config.limit:
        own.append(f"first {config.limit} images")
    return ", ".join([f"preset {config.preset}", *own])


def _classes(config: EvaluateConfig, name: str) -> tuple[EvalDataset, tuple[str, ...]]:
    """The benchmark under the names that tables show, and its lines of texts in label order."""
    if own := config.own.get(name):
        return own.dataset(), own.texts()
    benchmark = DATASETS[name]
    if benchmark.base is not None:
        return _subset(config, benchmark, *_classes(config, benchmark.base.name))
    if not config.classes:
        return benchmark, benchmark.names if config.preset == "tcl" else _second_names(benchmark)
    path, lines = _own_names(config, name)
    if benchmark.background and config.preset == "tcl" and lines[0] != "background":
        raise InputError(f"{path}: the first class of {name} must be background")
    shown = [synonyms(line)[0] for line in lines]
    if repeated := next((word for number, word in enumerate(shown) if word in shown[:number]), None):
        raise InputError(f"{path}: names {repeated!r} twice; first names must be unique")
    return replace(benchmark, names=("background", *shown[1:]) if benchmark.background else tuple(shown)), lines


def _second_names(benchmark: EvalDataset) -> tuple[str, ...]:
    """The SCLIP family's lines for a benchmark, which has synonyms; its own names where that family has none."""
    path = _NAMES / f"{benchmark.name}.txt"
    return read_names(path) if path.exists() else benchmark.names


def _subset(
    config: EvaluateConfig, benchmark: EvalDataset, base: EvalDataset, lines: tuple[str, ...]
) -> tuple[EvalDataset, tuple[str, ...]]:
    """A subset of a base, and its lines of texts. Its own list of names, where asked for, has the unseen ones if it has any."""
    chosen = benchmark.unseen or benchmark.names
    if config.classes:
        path, chosen = _own_names(config, benchmark.name)
        for class_ in chosen:
            if class_ not in base.names:
                raise InputError(f"{path}: {class_!r} is no class of {base.name}{near_miss(class_, base.names)}")
    names = base.names if benchmark.unseen else chosen
    texts = dict(zip(base.names, lines, strict=True))
    unseen = chosen if benchmark.unseen else ()
    return replace(benchmark, base=base, names=names, unseen=unseen), tuple(texts[class_] for class_ in names)


def _own_names(config: EvaluateConfig, name: str) -> tuple[Path, tuple[str, ...]]:
    """The config's own list for a row, and its lines."""
    path = Path(config.classes).expanduser() / f"{name}.txt"
    if not path.is_file():
        raise InputError(f"evaluate.classes: {path} is missing; it must list the class names of {name}, one a line")
    lines = read_names(path)
    if not lines or not all(synonyms(line) for line in lines):
        raise InputError(f"{path}: a class has no name; give each class a line, with commas between synonyms only")
    return path, lines
