"""What stages will take: how much there is to do, how long it lasts, and whether it fits on the disk."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

from cluster.features import DTYPES
from filtering.captions.reader import parts_of
from filtering.images.progress import size
from owseg import InputError
from owseg.checkpoint import located
from owseg.encoders import EncoderConfig, build_encoder
from owseg.evaluation.datasets import list_items
from owseg.evaluation.protocols import OVERRIDES, protocol_of
from owseg.features import ensure_frozen
from owseg.method_config import TrainableConfig
from owseg.methods import TRAINABLE
from owseg.phases import scheduled_phases
from owseg.segmenter import build_trained
from pipelines.app import measured
from pipelines.app.config import flatten, to_dict
from pipelines.app.measured import DOCUMENTED, Found, Measured, settings_of
from pipelines.app.resolve import methods_to_train, reads_features, resolve_encoder_paths
from pipelines.app.roles import comparable, roles_of
from pipelines.app.run_files import LocalRun, read_json
from pipelines.app.settings import Config
from storage.copies import at

CHECKPOINTS = 3
"""On the disk at once: the two that are kept, and the one that is being copied there."""
UNKNOWN = "in no run here before: their time is unknown"
MOMENTS = 3
"""A checkpoint's bytes, in weights: these, and AdamW's two moments."""


@dataclass(frozen=True)
class Forecast:
    """What a stage will take. None is what nobody knows."""

    stage: str
    work: str
    """What there is to do, in words: "8000 links"."""
    count: float | None
    """What is handed on to the next stage: links, captions, images."""
    seconds: float | None
    bytes: float
    """Room on the run's disk, what lies there already not counted."""
    basis: tuple[str, ...]
    """Where the figures come from."""
    done: bool = False


def forecasts(config: Config, stages: tuple[str, ...], rates: Measured) -> Iterator[Forecast]:
    """Of each stage, in order."""
    count: float | None = None
    for stage in stages:
        result = read_json(rates.own, f"{stage}.done.json").get("result") or {}
        if result and _stands(config, rates, stage):
            missing = _left(config, stage, result)
            forecast = _OF[stage](missing or config, rates, count)
            count = {"filter": result.get("kept"), "download": result.get("success")}.get(stage, count)
            yield forecast if missing else Forecast(stage, forecast.work, count, 0.0, 0.0, (), done=True)
        else:
            forecast = _OF[stage](config, rates, count)
            count = forecast.count
            yield forecast


def _stands(config: Config, rates: Measured, stage: str) -> bool:
    """Whether what a complete stage made is what these settings ask for, but for further methods."""
    deciding = {*list(_OF)[: list(_OF).index(stage) + 1]}
    before = dict(flatten(settings_of(rates.own)))
    return all(
        comparable(key, before.get(key, value)) == comparable(key, value)
        for key, value in flatten(to_dict(config))
        if key != "methods" and roles_of(key) & deciding and _has_a_say(config, key)
    )


def _has_a_say(config: Config, key: str) -> bool:
    """Whether a setting is not one of a method that the run leaves out."""
    _, _, rest = key.partition("method_settings.")
    return not rest or rest.partition(".")[0] in {*config.methods, *(method.name for method in methods_to_train(config))}


def _left(config: Config, stage: str, result: dict[str, Any]) -> Config | None:
    """The run without the methods that a complete stage has dealt with; None where none is left."""
    dealt = {"train": result.get("methods", {}), "evaluate": result.get("mIoU", {})}.get(stage)
    if dealt is None:
        return None
    wanted = config.methods if stage == "evaluate" else tuple(method.name for method in methods_to_train(config))
    names = {name for name in wanted if name not in dealt}
    return replace(config, methods=tuple(name for name in config.methods if name in names) or config.methods) if names else None


def check_disk(config: Config, stage: str) -> None:
    """Raise InputError where a stage that is about to begin does not fit on the disk."""
    if not config.check_disk or stage not in _OF:
        return
    if stage != "filter" and at(Path(config.run_dir)):  # images, checkpoints and scores are on their way to the store
        return
    rates = Measured(config.run_dir)
    before, number = {"download": ("filter", "kept"), "features": ("download", "success")}.get(stage, ("", ""))
    count = (read_json(rates.own, f"{before}.done.json").get("result") or {}).get(number)
    forecast = _OF[stage](config, rates, count)
    free = rates.own.free()
    if free is not None and forecast.bytes > free:
        raise InputError(
            f"{stage}: needs about {size(forecast.bytes)} for {forecast.work}, and {config.run_dir} has {size(free)} free "
            f"({', '.join(forecast.basis)}); free some (owseg prune), take another disk with run_dir=FOLDER, "
            f"{_LOWER[stage]}, or start all the same with check_disk=false"
        )
    room = _temporary_bytes(config) if stage == "train" else 0.0
    with suppress(OSError):
        left = LocalRun(Path(tempfile.gettempdir())).free()
        if left is not None and room > left:
            raise InputError(
                f"train: a checkpoint of {size(room)} is written to {tempfile.gettempdir()} first, which has {size(left)} "
                "free; set TMPDIR to another disk, or start all the same with check_disk=false"
            )


_LOWER = {
    "filter": "give fewer links",
    "download": "lower download.image.image_size",
    "features": "train on pixels with train.features=none",
    "train": "train fewer methods at once",
    "evaluate": "set evaluate.limit or evaluate.pictures=false",
}


def links_in(config: Config) -> int:
    """About how many links the source has."""
    source = config.filter.source
    return sum(part.rows_hint for part in parts_of(source)) if source.path else config.miniature.links


def _filter(config: Config, rates: Measured, _: float | None) -> Forecast:
    links = links_in(config)
    rate = rates.find(measured.filter_rate, measured.FILTER_ROWS_PER_CORE * _cores(config), links=("filter", links))
    room = rates.find(measured.corpus_bytes, measured.FILTER_BYTES_PER_LINK, links=("filter", links))
    share = rates.find(measured.kept_share, measured.KEPT_SHARE, links=("filter", links))
    assert rate
    assert room
    assert share
    there = measured.bytes_below(rates.own, "corpus")
    return Forecast(
        "filter",
        f"{links} links",
        links * share.value,
        links / rate.value,
        max(0.0, links * room.value - there),
        _basis(rate=rate, room=room, share=share),
    )


def _download(config: Config, rates: Measured, kept: float | None) -> Forecast:
    links, side = kept or 0.0, config.download.image.image_size
    rate = rates.find(measured.download_rate, measured.IMAGES_PER_SECOND_AND_CORE * _cores(config), links=("download", links))
    room = rates.find(measured.bytes_per_pixel, measured.BYTES_PER_PIXEL, links=("download", links))
    share = rates.find(measured.obtained_share, measured.OBTAINED_SHARE, links=("download", links))
    assert rate
    assert room
    assert share
    there = measured.bytes_below(rates.own, "shards")
    return Forecast(
        "download",
        f"{links:.0f} links",
        links * share.value,
        links / rate.value,
        max(0.0, links * share.value * room.value * side**2 - there),
        _basis(rate=rate, room=room, share=share),
    )


def _features(config: Config, rates: Measured, images: float | None) -> Forecast:
    seconds, room, names, basis = 0.0, 0.0, [], {}
    known = images is not None
    for method in methods_to_train(config):
        if reads_features(config, method):
            rate = rates.find(measured.features_rate(method.name), like=partial(_trains_alike, config, method.name))
            known = known and rate is not None
            workers = 1 if config.train.use_gpu else _cores(config)
            seconds += (images or 0.0) / (rate.value * workers) if rate else 0.0
            basis[method.name] = rate or Found(0.0, UNKNOWN)
            room += (images or 0.0) * _feature_bytes(resolve_encoder_paths(config), method, config.train.features)
            names.append(method.name)
    there = measured.bytes_below(rates.own, "features")
    words = f"{images:.0f} images" if images is not None else "the images of train.shards"
    return Forecast(
        "features",
        f"{words} for {', '.join(names)}",
        images,
        seconds if known else None,
        max(0.0, room - there),
        _basis(**basis),
    )


def _train(config: Config, rates: Measured, _: float | None) -> Forecast:
    seconds, room, words, basis = 0.0, 0.0, [], {}
    known = True
    methods = methods_to_train(config)
    made = (read_json(rates.own, "train.done.json").get("result") or {}).get("methods", {})
    if made and _stands(config, rates, "train"):
        methods = [method for method in methods if method.name not in made] or methods
    for method in methods:
        phases = scheduled_phases(method.phases, method.optim)
        pairs = sum((phase.stop - phase.start) * phase.schedule.optim.batch_size for phase in phases)
        rate = rates.find(measured.pairs_rate(method.name), like=partial(_trains_alike, config, method.name))
        words.append(f"{method.name} {phases[-1].stop} steps")
        known = known and rate is not None
        seconds += pairs / rate.value if rate else 0.0
        basis[method.name] = rate or Found(0.0, UNKNOWN)
        weights = _weight_bytes(resolve_encoder_paths(config), method)
        room += max(0.0, weights * (1 + CHECKPOINTS * MOMENTS) - measured.bytes_below(rates.own, f"train/{method.name}"))
    return Forecast("train", ", ".join(words) or "nothing", None, seconds if known else None, room, _basis(**basis))


def _evaluate(config: Config, rates: Measured, _: float | None) -> Forecast:
    images = _images(config)
    basis: dict[str, Found] = {}
    seconds, known = 0.0, True
    for method in config.methods:
        found = rates.find(measured.seconds_per_image(method), like=partial(_scores_alike, config, method))
        known = known and found is not None
        seconds += images * found.value / _cores(config) if found else 0.0
        basis[method] = found or Found(0.0, UNKNOWN)
    room = float(images * len(config.methods) * measured.SCORE_BYTES_PER_IMAGE)
    there = measured.bytes_below(rates.own, "evaluate")
    words = f"{images} images by {', '.join(config.methods)}"
    return Forecast("evaluate", words, None, seconds if known else None, max(0.0, room - there), _basis(**basis))


def _trains_alike(config: Config, method: str, other: dict[str, Any]) -> bool:
    """Whether a step of a method takes in another run what it takes in this one."""
    keys = [f"method_settings.{method}", "encoder.model", "train.workers", "train.use_gpu", "train.bf16"]
    keys += ["train.features"] if TRAINABLE[method].reads_features else []
    return all(_at(other, key) == _at(to_dict(config), key) for key in keys)


def _scores_alike(config: Config, method: str, other: dict[str, Any]) -> bool:
    """Whether an image takes the same time."""
    keys = ("preset", *OVERRIDES, "refine", "use_gpu")
    return all(
        _at(other, key) == _at(to_dict(config), key)
        for key in (f"method_settings.{method}", "encoder.model", *(f"evaluate.{key}" for key in keys))
    )


def _at(tree: Any, key: str) -> object:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


_OF: dict[str, Callable[[Config, Measured, float | None], Forecast]] = {
    "filter": _filter,
    "download": _download,
    "features": _features,
    "train": _train,
    "evaluate": _evaluate,
}


def _images(config: Config) -> int:
    """Those that each method is to be scored on."""
    evaluate = config.evaluate
    total = 0
    for name in evaluate.names:
        if evaluate.root or name in evaluate.own:
            listed = len(list_items(protocol_of(evaluate, name).benchmark, evaluate.folder))
        else:
            listed = config.miniature.benchmark_images
        total += min(listed, evaluate.limit) if evaluate.limit else listed
    return total


def _temporary_bytes(config: Config) -> float:
    """Of the largest checkpoint."""
    return max(
        (_weight_bytes(resolve_encoder_paths(config), method) * MOMENTS for method in methods_to_train(config)), default=0
    )


@cache
def _weight_bytes(encoder: EncoderConfig, method: TrainableConfig) -> int:
    """Of a method with its encoder, in float32."""
    built = build_trained(located(method, Path()), partial(build_encoder, encoder))
    return sum(tensor.numel() * tensor.element_size() for tensor in built.state_dict().values())


@cache
def _feature_bytes(encoder: EncoderConfig, method: TrainableConfig, kind: str) -> int:
    """What is stored of an image and of one text."""
    built = ensure_frozen(build_trained(located(method, Path()), partial(build_encoder, encoder)), method)
    return sum(map(prod, built.feature_shapes)) * DTYPES[kind].itemsize


def _cores(config: Config) -> int:
    return config.session.num_cpus or len(os.sched_getaffinity(0))


def _basis(**found: Found) -> tuple[str, ...]:
    """In words, sources together: "rate and room measured in demo, share documented"."""
    by_source: dict[str, list[str]] = {}
    for name, figure in found.items():
        by_source.setdefault(figure.source, []).append(name.replace("_", " "))
    told = []
    for source, names in by_source.items():
        what = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        told.append(f"{what} {source}" if source in (DOCUMENTED, UNKNOWN) else f"{what} measured in {source}")
    return tuple(told)
