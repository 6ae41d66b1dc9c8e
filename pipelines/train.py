"""Image shards in, trained methods out: Ray Train workers with DeepSpeed, resuming from the last checkpoint."""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from cluster.tracking import Model, Run, RunOf
from cluster.train import train
from cluster.train_config import RayTrainJob
from cluster.tuning import AVERAGE, best_weights, content_of, pictures_of
from filtering.files import digest_of, digest_of_file
from owseg import InputError
from owseg.checkpoint import Checkpoint, files_at, located, write_model
from owseg.encoders import PRETRAIN, EncoderConfig, encoder_dict
from owseg.evaluation.protocols import view_of
from owseg.exposure import keys_of_step
from owseg.fields import file_name, path_settings, training_settings
from owseg.fit import WEIGHTS
from owseg.ledger import LEDGER
from owseg.method_config import TrainableConfig
from owseg.step_log import costs_of, left_out_of
from owseg.training import TrainJob, shards_of
from pipelines.app.checks import check_encoder, check_methods, check_weights
from pipelines.app.cli import RESTART, VERIFY, Option, main
from pipelines.app.config import to_dict
from pipelines.app.context import Context, Result, open_context
from pipelines.app.describe import plain
from pipelines.app.dry_run import dry_run
from pipelines.app.feature_stage import run_features
from pipelines.app.own_shards import forgotten_keys, own_shards, tars_at
from pipelines.app.records import headline_of, settings_of, shards_data
from pipelines.app.resolve import (
    features_folder,
    given_weights,
    methods_to_train,
    reads_features,
    resolve_encoder_paths,
    spread_training,
    starting_weights,
)
from pipelines.app.settings import Config
from pipelines.app.stage_marker import read_marker
from pipelines.app.world import tuning_config
from pipelines.download import run_download
from pipelines.filter import run_filter
from storage.copies import pulled, shown, size_of

KEYS = {"--keys": Option("STEP", "print the keys of the samples that a step (from 0) of each training shows, and end")}
FINGERPRINT = "fingerprint"
"""In a training's folder: what tells it from others."""
BEFORE = "before"
"""Folder of trainings that others, on other data or weights, have taken the place of."""


def run_train(context: Context, shards: Result) -> Result:
    """The train stage: `train/<method>/` in the run's folder for each method that trains, towers first where asked for."""
    out = context.run_dir / "train"
    jobs = methods_to_train(context.config)
    reading = [job for job in jobs if reads_features(context.config, job)]
    if reading:
        train_towers(context, shards, jobs)  # first: another tower is another training of the method, on other features
    ensure_features(context, shards, [job for job in reading if not _is_trained(context, job, shards)])
    begun = {name: digest_of_file(file) for name, file in sorted(starting_weights(context.config).items())}
    settings = [deciding_settings(context.config, job) for job in jobs]
    fingerprint = digest_of([settings, shards["digest"], *([begun] if begun else []), *_chosen_by(context, jobs)])

    def work() -> Result:
        trained = {job.name: _train_method(context, job, shards) for job in jobs}
        digests = {name: result["digest"] for name, result in trained.items()}
        costs = {name: result["costs"] for name, result in trained.items() if "costs" in result}  # older runs have none
        left_out = {name: result["left_out"] for name, result in trained.items() if "left_out" in result}
        return {"methods": digests, "costs": costs, "left_out": left_out, "digest": digest_of(digests)}

    out.mkdir(parents=True, exist_ok=True)
    result = context.stage(
        "train", fingerprint, out, work, files=lambda: [file for job in jobs for file in _weight_files(out, job)]
    )
    for numbers in (result.get("costs", {}), result.get("left_out", {})):
        for name, values in numbers.items():
            context.tracker.metrics({f"train/{name}/{key}": value for key, value in values.items()})
    for job in jobs:
        view = view_of(context.config.evaluate, "voc21")
        weights = weights_of(context, job.name)
        described = Checkpoint(
            method=located(job, Path()),
            encoder=trained_encoder(context),
            normalisation=context.config.normalisation,
            view=view,
            weights=weights,
        )
        write_model(described)
    return result


def train_towers(context: Context, shards: Result, jobs: Sequence[TrainableConfig]) -> None:
    """Those of the trainings that others are built on."""
    for job in jobs:
        if job.tower is not None:
            _train_method(context, job, shards)


def ensure_features(context: Context, shards: Result, methods: Sequence[TrainableConfig]) -> None:
    """The features stage for methods that read features, whose towers are there."""
    if methods:
        encoder = trained_encoder(context)
        run_features(context, [job_of(context.config, method, encoder, context.run_dir) for method in methods], shards)


def ensure_trained(context: Context) -> None:
    """The stages up to train; none of them where each method has its weights or needs none."""
    if methods_to_train(context.config):
        own = context.config.train.shards
        run_train(context, own_shards(context.config) if own else run_download(context, run_filter(context)))
    else:
        print("train: skipped, nothing is to be trained", flush=True)


def trained_encoder(context: Context) -> EncoderConfig:
    """The run's encoder, with the path of its own weights where the run pretrains it."""
    encoder, clip = resolve_encoder_paths(context.config), context.config.method_settings.clip
    if encoder.pretrained == PRETRAIN:
        return replace(encoder, pretrained=str(context.run_dir / "train" / clip.name / clip.tower.file))
    return encoder


def weights_of(context: Context, name: str) -> Path:
    """Where a trained method's weights lie: those that the settings give, or those that the run trains."""
    return given_weights(context.config).get(name, context.run_dir / "train" / name / WEIGHTS)


def deciding_settings(config: Config, method: TrainableConfig) -> dict[str, Any]:
    """All that decides a method's weights, besides the data."""
    settings = {
        "method": plain(training_settings(located(method, Path()))),
        "normalisation": to_dict(config.normalisation),
        "seed": config.seed,
        "bf16": config.train.bf16,
    }
    if _keeps_best(config, method):
        settings["keep_best"] = True
    if config.train.caption_field:
        settings["caption_field"] = config.train.caption_field
    if config.train.shards:
        settings["own_shards"] = True
    if reads_features(config, method):
        settings["features"] = config.train.features
    if method.depends_on_ranks:
        settings["workers"] = spread_training(config, method).workers
    if method.uses_clip:
        given = {key: file_name(getattr(config.encoder, key)) for key in ("model", "pretrained")}
        settings["encoder"] = encoder_dict(resolve_encoder_paths(config)) | given
    return settings


def job_of(config: Config, method: TrainableConfig, encoder: EncoderConfig, run_dir: Path) -> RayTrainJob:
    """A method's training in a run's folder."""
    own = run_dir / "shards"
    return RayTrainJob(
        method=located(method, Path()),
        encoder=encoder,
        normalisation=config.normalisation,
        shards=tuple(tars_at(config.train.shards) if config.train.shards else shards_of(own)),
        out=run_dir / "train" / method.name,
        start=starting_weights(config).get(method.name),
        forgotten=forgotten_keys(replace(config, run_dir=str(run_dir))),
        seed=config.seed,
        train=spread_training(config, method),
    )


def _train_method(context: Context, method: TrainableConfig, shards: Result) -> Result:
    """Train one method in a tracked run of its own; returns the digest of its weights, its steps and what they cost."""
    folder = context.run_dir / "train" / method.name
    encoder = trained_encoder(context)
    if method.name == "clip":
        encoder = replace(encoder, pretrained=PRETRAIN)
    tuning = tuning_config(context) if _scored(context.config, method) else None
    features = features_folder(context.run_dir, method.name) if reads_features(context.config, method) else None
    job = replace(job_of(context.config, method, encoder, context.run_dir), tuning=tuning, features=features)
    fingerprint = _fingerprint(context, job, shards)

    def work() -> Result:
        set_other_aside(folder, fingerprint)
        with context.tracker.child(f"train {method.name}", stage="train") as run:
            run.tags({"method": method.name, "shards_digest": shards["digest"], "download_run": RunOf("download")})
            run.params({**headline_of(context.config, "train", method.name), "steps": job.steps})
            run.dataset(shards_data(context.config, context.run_dir, shards), context="training")
            run.describe(f"Training of **{method.name}** on the shards of [[download]], {job.steps} steps.")
            weights = train(job, context.config.session, lambda steps: _log(run, job.out, steps))
            run.artifact(job.ledger)
            run.model(_model(context, job, shards), made=True)
            if tower := method.tower:
                trained = {name: tensor for name, tensor in load_file(weights).items() if name.startswith(tower.prefix)}
                save_file({name.removeprefix(tower.prefix): tensor for name, tensor in trained.items()}, folder / tower.file)
            return {"costs": costs_of(job), "left_out": left_out_of(job), "digest": digest_of_file(weights)}

    return context.part(
        f"train-{method.name}", fingerprint, job.weights, work, files=lambda: _weight_files(folder.parent, method)
    )


def _fingerprint(context: Context, job: RayTrainJob, shards: Result) -> str:
    """Of one method's training."""
    settings = deciding_settings(context.config, job.method)
    return digest_of([settings, shards["digest"], _begun_from(job), *_chosen_by(context, [job.method])])


def _is_trained(context: Context, method: TrainableConfig, shards: Result) -> bool:
    """Whether a method's weights are there, by these very settings, data and towers."""
    job = job_of(context.config, method, trained_encoder(context), context.run_dir)
    there = size_of(job.weights) is not None
    return there and read_marker(context.run_dir, f"train-{method.name}", _fingerprint(context, job, shards)) is not None


def _model(context: Context, job: RayTrainJob, shards: Result) -> Model:
    """The trained weights as MLflow's LoggedModel."""
    best = best_weights(job.out) if _keeps_best(context.config, job.method) else None
    return Model(
        name=job.method.name,
        digest=digest_of_file(job.weights),
        kind=job.method.name,
        params=settings_of(context.config, "train", job.method.name),
        tags={
            "weights": shown(job.weights),
            "step": best[0] if best else job.steps,
            "kept": "the best on the tuning split" if best else "the last",
            "shards_digest": shards["digest"],
            "run_dir": shown(context.run_dir),
        },
    )


def _scored(config: Config, method: TrainableConfig) -> bool:
    """Whether a method's checkpoints are scored; not those of a tower's pretraining, which segments nothing."""
    return (config.train.keep_best or config.train.score_checkpoints) and method.tower is None


def _keeps_best(config: Config, method: TrainableConfig) -> bool:
    """Whether a method's best checkpoint is kept instead of its last."""
    return config.train.keep_best and _scored(config, method)


def _chosen_by(context: Context, methods: Sequence[TrainableConfig]) -> list[object]:
    """The images by which any method's weights are chosen; nothing where the last are kept."""
    return [content_of(tuning_config(context))] if any(_keeps_best(context.config, method) for method in methods) else []


def _weight_files(out: Path, method: TrainableConfig) -> list[Path]:
    """What a training leaves for later stages."""
    return [out / method.name / name for name in (WEIGHTS, *([method.tower.file] if method.tower else []))]


def set_other_aside(folder: Path, fingerprint: str) -> None:
    """Make `folder` this training's. What one on other data or weights left there moves away, lest it be gone on from."""
    file = folder / FINGERPRINT
    if not file.is_file() or file.read_text(encoding="utf-8") != fingerprint:
        if folder.is_dir() and any(folder.iterdir()):
            places = (folder.parent / BEFORE / f"{folder.name}.{number}" for number in count(1))
            aside = next(place for place in places if not place.exists())
            aside.parent.mkdir(exist_ok=True)
            pulled(folder).rename(aside)
            print(f"train-{folder.name}: begins anew with other settings, data or weights; what was trained is kept in {aside}")
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(fingerprint, encoding="utf-8")


def _begun_from(job: TrainJob) -> list[str]:
    """Digests of the weights that a method uses or begins with, as far as they lie in files."""
    named = [job.encoder.pretrained] if job.method.uses_clip and job.method.name != "clip" else []
    named += [getattr(job.method, name) for name in sorted(path_settings(job.method))]
    named += [str(job.start)] if job.start else []
    return [digest_of_file(file) for name in named for file in files_at(name)]


def _log(run: Run, out: Path, steps: list[dict[str, Any]]) -> None:
    for line in steps:
        step = int(line["step"])
        run.metrics({f"train/{name}": value for name, value in line.items() if name not in ("step", LEDGER)}, step)
        if AVERAGE in line:  # the checkpoint was scored
            for picture in sorted(pictures_of(out, step).glob("*.png")):
                run.image(picture, f"tuning/{picture.stem}", step)


def print_keys(config: Config, step: str) -> None:
    """Print the keys that a step of each training shows, in their places."""
    if not step.isdigit():
        raise InputError(f"--keys: a step is a number from 0 on, not {step!r}")
    folder, encoder = Path(config.run_dir), replace(resolve_encoder_paths(config), pretrained=PRETRAIN)
    jobs = [job_of(config, method, encoder, folder) for method in methods_to_train(config)]
    for job in [job for job in jobs if int(step) < job.steps] or jobs:  # shorter trainings end before it
        for place, key in enumerate(keys_of_step(job, int(step))):
            print(f"{job.method.name} step {step} place {place}: {key}")


def run(config: Config, verify: bool = False, keys: str = "") -> None:
    """The verb; stages before it that are not complete run first."""
    if keys:
        print_keys(config, keys)
        return
    check_encoder(config)
    check_methods(config)
    check_weights(config)
    with open_context(config, verify=verify) as context:
        ensure_trained(context)


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or "", flags={**RESTART, **VERIFY, **KEYS, **dry_run("train")}))
