"""What can be found wrong with a run's inputs at once, before hours of work lead up to it."""

import os
from functools import cache, partial
from pathlib import Path

import torch

from cluster.capacity import no_room, room
from cluster.session import is_shared
from owseg import InputError
from owseg.checkpoint import MODEL, check_digest, located, read_model
from owseg.data import check_batch_size
from owseg.encoders import PRETRAIN, build_encoder, load_encoder, weight_tag
from owseg.evaluation.check import refuse_unfit
from owseg.evaluation.datasets import list_items
from owseg.evaluation.inference import refuse_window
from owseg.evaluation.protocols import check_synonyms, protocol_of, view_of
from owseg.fit import WEIGHTS, phase_groups
from owseg.method_config import TrainableConfig
from owseg.micro_batches import ensure_contrastive
from owseg.phases import augmentations, batch_sizes, scheduled_phases
from owseg.published import load_start, load_trained
from owseg.segmenter import build_trained, load_frozen
from owseg.trainable import TrainableMethod
from pipelines.app.evaluated import MINIATURE
from pipelines.app.resolve import (
    asks_for_tower,
    given_weights,
    located_model,
    methods_to_train,
    model_of,
    needs_clip,
    resolve_encoder_paths,
    spread_training,
    starting_weights,
)
from pipelines.app.settings import Config


def check_encoder(config: Config) -> None:
    """Raise InputError where the encoder's architecture is unknown, or its weights are missing or do not fit.

    Nothing is asked of an encoder that no method of the run uses.
    """
    if not needs_clip(config):
        return
    encoder = resolve_encoder_paths(config)
    weights = Path(encoder.pretrained)
    if encoder.pretrained != PRETRAIN and (weights.suffix or weights.is_file()):
        load_encoder(encoder)
        return
    if encoder.pretrained != PRETRAIN:
        weight_tag(encoder)
    with torch.device("meta"):  # the architecture alone, at no cost
        build_encoder(encoder)


def check_crops(config: Config, method: TrainableConfig) -> None:
    """Raise InputError where training crops are larger than the images that the run downloads can be."""
    image = config.download.image
    for key, augment in [] if config.train.shards else augmentations(method.phases, method.augment):
        if image.resize_mode != "no" and augment.size > image.image_size:
            raise InputError(
                f"method_settings.{method.name}.{key}.size: crops of {augment.size} pixels are larger than the shards' images "
                f"(download.image.image_size is {image.image_size})"
            )


def check_workers(config: Config, method: TrainableConfig) -> None:
    """Raise InputError where a method's batches do not divide over its training processes, or these must not be a range."""
    train, name = spread_training(config, method), f"method_settings.{method.name}"
    if train.least_workers == train.most_workers:
        for _, _, _, schedule in scheduled_phases(method.phases, method.optim):
            size = schedule.optim.batch_size
            check_batch_size(size, samples=size, workers=train.most_workers, key=f"{name}.{schedule.key}.batch_size")
    elif method.depends_on_ranks:
        raise InputError(
            f"train.workers: losses of {name}.fidelity=official depend on it; give one number, not {train.workers}"
        )
    elif not train.counts(batch_sizes(method.phases, method.optim)):
        sizes = " and ".join(map(str, sorted(set(batch_sizes(method.phases, method.optim)))))
        raise InputError(f"train.workers: {name}'s batches of {sizes} divide over no number of {train.workers}")


def check_tuning(config: Config) -> None:
    """Raise InputError where checkpoints shall be scored, and nothing is there to score them on."""
    evaluate = config.evaluate
    if not config.train.keep_best and not config.train.score_checkpoints:
        return
    key = "train.keep_best" if config.train.keep_best else "train.score_checkpoints"
    if not evaluate.tuning and evaluate.root:
        raise InputError(
            f"{key}: there are no labelled images to score checkpoints on; set evaluate.tuning to a folder laid out as "
            "evaluate.root, none of whose images are scored there"
        )
    named = [name for name in evaluate.names if name not in evaluate.own]
    if not named:
        raise InputError(f"{key}: all of evaluate.datasets are own ones, which have no tuning split; name another")
    if evaluate.tuning and Path(evaluate.tuning).expanduser().resolve() == evaluate.folder.resolve():
        raise InputError("evaluate.tuning: it is evaluate.root, on which scores are reported; give other images")
    for name in named if evaluate.tuning else []:
        list_items(protocol_of(evaluate, name).benchmark, Path(evaluate.tuning).expanduser())


def check_room(config: Config, method: TrainableConfig) -> None:
    """Raise InputError where a training is to run on this machine, which has too few GPUs or cores for its processes."""
    if is_shared(config.session):
        return
    train = spread_training(config, method)
    least = min(train.counts(batch_sizes(method.phases, method.optim)), default=train.least_workers)
    there = {"CPU": float(config.session.num_cpus or len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
    fitting = room([{"Alive": True, "Resources": there}], train.each, None)
    if fitting < least:
        cure = "submit it to a cluster that has them (session.address)"
        raise InputError(no_room(least, train.each, fitting, "this machine", cure))


def check_windows(config: Config, method: TrainableMethod) -> None:
    """Raise InputError where the run would score a method on windows that it cannot be shown as they are."""
    for name in config.evaluate.names if config.methods else []:
        refuse_window(method, view_of(config.evaluate, name))


def check_methods(config: Config) -> None:
    """Raise InputError where a method that is still to be trained cannot be.

    Its batches must divide over the workers, its phases name what it has, and the weights that it begins with be there and
    fit. Those named by a tag are downloaded here, once, before the workers ask for them.
    """
    check_tuning(config)
    make_encoder = cache(lambda: build_encoder(resolve_encoder_paths(config)))
    for model in methods_to_train(config):
        if (Path(config.run_dir) / "train" / model.name / WEIGHTS).is_file():
            continue
        check_crops(config, model)
        check_room(config, model)
        check_workers(config, model)
        method = build_trained(located(model, Path()), make_encoder)
        check_windows(config, method)
        if config.train.micro_batch:
            ensure_contrastive(method, model.name)
        try:
            phase_groups(method, model.phases, model.optim)
        except InputError as error:
            raise InputError(f"method_settings.{model.name}.{error}") from error
        if not asks_for_tower(getattr(config.method_settings, model.name)):  # that one is still to be trained
            method.initialise()


def check_weights(config: Config) -> None:
    """Raise InputError where given weights are missing, or belong to another architecture or another CLIP than the run's."""
    encoder = resolve_encoder_paths(config)
    for name, path in starting_weights(config).items():
        if not path.is_file():
            raise InputError(f"init.{name}: {path} does not exist")
        model = model_of(config, name)
        assert isinstance(model, TrainableConfig)
        if model.tower and model not in methods_to_train(config):
            told = f"this run trains no {model.tower.title}; set {model.tower.asked}, or leave init.{name} out"
            raise InputError(f"init.{name}: {told}")
        make_encoder = build_encoder if encoder.pretrained == PRETRAIN else load_encoder
        load_start(build_trained(model, partial(make_encoder, encoder)), model.phases, path)
        check_digest(path)
    for name, path in given_weights(config).items():
        if not path.is_file():
            raise InputError(f"weights.{name}: {path} does not exist")
        model = located_model(config, name)
        assert isinstance(model, TrainableConfig)
        method = build_trained(model, lambda: build_encoder(encoder))
        check_windows(config, method)
        if not asks_for_tower(getattr(config.method_settings, name)):
            load_frozen(method, model)
        load_trained(method, model.phases, path)
        if path.with_name(MODEL).is_file() and Path(encoder.pretrained).is_file():
            read_model(path.parent, encoder_weights=encoder.pretrained)


def check_benchmarks(config: Config) -> None:
    """Raise InputError where nothing is to be scored, a file of a benchmark is missing or cut, or synonyms are of no class.

    Prints what of a dataset's folders is not looked at.
    """
    if not config.methods:
        raise InputError("methods: there are none to score; name at least one: methods=[maskclip]")
    evaluate = config.evaluate
    own = {name: dataset.dataset() for name, dataset in evaluate.own.items()}
    if evaluate.root or len(own) == len(evaluate.datasets):
        rows = [protocol_of(evaluate, name).benchmark for name in evaluate.names]
    else:  # the world's benchmarks are drawn later, with lists of their own
        for name in evaluate.names:
            if name not in own and name not in MINIATURE:
                raise InputError(f"evaluate.datasets: the miniature world has no {name}; set evaluate.root to its folder")
        check_synonyms(evaluate, MINIATURE | {name: dataset.names for name, dataset in own.items()})
        for dataset in evaluate.own.values():
            dataset.texts()
        rows = list(own.values())
    for row in rows:
        items = list_items(row, evaluate.folder)
        refuse_unfit(row, items[: evaluate.limit or None], unreadable=evaluate.unreadable, decode_all=False)
        for note in row.files.left_out(evaluate.folder):
            print(f"{row.name}: {note}", flush=True)
