"""Features in the place of pixels: the same samples, losses and weights; files of anything else are refused in a line."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import tiny
from helpers.tar_files import picture, sample, samples, write
from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.data import Batch
from owseg.features import FeatureMaker, FrozenFeatures, ensure_frozen, stored_features
from owseg.left_out import BadSample
from owseg.methods.talk2dino import Talk2DinoConfig
from owseg.methods.tcl import TclConfig
from owseg.noise import of_step
from owseg.phases import Phase
from owseg.shards import ShardReader
from owseg.stored_features import file_of
from owseg.trainable import losses_of
from owseg.training import LoopConfig, TrainJob, batches_of, build, reader_of, train

CENTRE = AugmentConfig(size=32, crop="centre", rand_augment="", erase=0.0, reduced_decoding=False)
SHARDS = 3
STEPS = 8


def job_on(shards: Path, config: Talk2DinoConfig, **settings: Any) -> TrainJob:
    return TrainJob(
        method=replace(config, image_weights=tiny.write_tower(shards)),
        encoder=tiny.encoder_config(shards),
        normalisation=tiny.HALF,
        shards=tuple(sorted(shards.glob("*.tar"))),
        out=shards.parent / "train",
        **{"train": LoopConfig(log_every=1, max_bad_share=0.2), **settings},
    )


def config_of(head: str = "caption", **settings: Any) -> Talk2DinoConfig:
    return tiny.talk2dino_config(STEPS, **{"augment": CENTRE, "head": head, **settings})


def make(job: TrainJob, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the features of a job's tars, with the weights that its training begins with."""
    folder.mkdir()
    method = build(job)
    maker = FeatureMaker(ensure_frozen(method, job.method), job.method, reader_of(job, method), job.normalisation, dtype=dtype)
    for number in range(len(job.shards)):
        maker(number, file_of(folder, number))
    return folder


def batches(job: TrainJob) -> list[Batch]:
    """Those of all steps, by pixels or, where the job says so, by features."""
    method = build(job)
    reader = reader_of(job, method)
    features = stored_features(job.features, method, job.method, reader, job.normalisation, bf16=job.train.bf16)
    drawn = batches_of(job, method, reader, job.scheduled_phases[0], 0, 1, features)
    return [drawn[step] for step in range(STEPS)]


def losses(job: TrainJob, some: Sequence[Batch], micro_batch: int = 0) -> list[float]:
    method = build(job)
    assert isinstance(method, FrozenFeatures)
    method.micro_batch = micro_batch
    found = []
    for step, batch in enumerate(some):
        with of_step(job.seed, step):
            found.append(float(losses_of(method, batch)["contrast"].detach()))
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "shards"
    tiny.write_shards(folder, samples=40, per_shard=16)
    return folder


@pytest.mark.parametrize("head", ["caption", "entity"])
def test_the_same_samples_and_losses_without_a_pixel(head: str, shards: Path, tmp_path: Path) -> None:
    """In float32 exactly, in float16 to 1e-3; over more than one epoch, and in micro-batches."""
    job = job_on(shards, config_of(head))
    pixels = batches(job)
    plain = losses(job, pixels)
    for dtype, tolerance in ((torch.float32, 0.0), (torch.float16, 1e-3)):
        reading = replace(job, features=make(job, tmp_path / str(dtype), dtype))
        features = batches(reading)
        assert [batch.keys for batch in features] == [batch.keys for batch in pixels]
        assert [batch.captions for batch in features] == [batch.captions for batch in pixels]
        assert features[0].features
        assert features[0].image.shape == (8, 2, 32)  # heads, and their width
        assert features[0].image.dtype == dtype
        assert losses(reading, features) == pytest.approx(plain, rel=tolerance, abs=tolerance)
        assert losses(reading, features, micro_batch=3) == pytest.approx(plain, rel=max(tolerance, 1e-6))
    assert len({round(loss, 4) for loss in plain}) == STEPS  # else anything might be equal


def test_training_on_features_ends_with_the_weights_of_training_on_pixels(shards: Path, tmp_path: Path) -> None:
    """The ledger of what was shown is the same, too."""
    job = replace(job_on(shards, config_of()), out=tmp_path / "pixels")
    plain = load_file(train(job))
    reading = replace(job, out=tmp_path / "read", features=make(job, tmp_path / "features"))
    for name, tensor in load_file(train(reading)).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-5, atol=1e-6)
    assert job.ledger.read_text() == reading.ledger.read_text()


def test_samples_that_cannot_be_read_are_left_out_as_with_pixels(tmp_path: Path) -> None:
    """Others take their places, and their reasons are the same."""
    spoilt = {5: (".jpg", picture(size=(200, 200))[:400]), 9: (".txt", "ein Käfer".encode("latin-1")), 20: (".jpg", b"x")}
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards" / "00000.tar", samples(48, spoilt))
    job = job_on(tmp_path / "shards", config_of())
    pixels, features = batches(job), batches(replace(job, features=make(job, tmp_path / "features")))
    assert [batch.keys for batch in features] == [batch.keys for batch in pixels]
    met: list[BadSample] = [bad for batch in pixels for bad in batch.bad]
    assert met == [bad for batch in features for bad in batch.bad]
    assert {bad.key for bad in met} == {"0005", "0009", "0020"}


def test_other_weights_and_settings_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = make(job_on(shards, config_of()), tmp_path / "features")
    job = job_on(shards, config_of(), features=folder)
    others = {
        "weights": replace(job, seed=1),  # CLIP begins at random here
        "images": replace(job, method=replace(job.method, augment=replace(CENTRE, size=40))),
        "texts": job_on(shards, config_of("entity"), features=folder),
    }
    for what, other in others.items():
        with pytest.raises(InputError, match=rf"^features: {folder}/00000\.safetensors was made with other {what} than this "):
            batches(other)
    with pytest.raises(InputError, match="was made with other images than this "):
        batches(replace(job, normalisation=replace(tiny.HALF, mean=(0.4,) * 3)))
    with pytest.raises(InputError, match="was made with other images than this "):
        batches(replace(job, train=replace(job.train, bf16=True)))


def test_files_that_lack_something_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = make(job_on(shards, config_of()), tmp_path / "features")
    job = job_on(shards, config_of(), features=folder)
    assert len(batches(job)) == STEPS
    file = file_of(folder, 1)
    whole = file.read_bytes()
    tensors, told = tensors_of(file)
    spoilt = {
        "is damaged": lambda: file.write_bytes(whole[:-100]),
        "is missing": file.unlink,
        r"is no file of features": lambda: save_file({"image": torch.zeros(1)}, file),
        r"lacks the sample 00000031 of ": lambda: save_file(
            {**tensors, "keys": tensors["keys"][:-8].clone(), "key_ends": tensors["key_ends"][:-1].clone()},
            file,
            {**told, "tar": '"another"'},
        ),
    }
    for message, spoil in spoilt.items():
        spoil()
        with pytest.raises(InputError, match=rf"^features: {file} {message}.*owseg features") as caught:
            batches(job)
        assert "\n" not in str(caught.value)


def tensors_of(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name).clone() for name in opened.keys()}, opened.metadata()  # noqa: SIM118


SPOILT_TENSORS: dict[str, dict[str, Any]] = {
    **{f"no {name}": {name: None} for name in ("image", "text", "texts", "keys", "key_ends")},
    "fewer images": {"image": lambda image: image[:-1]},
    "fewer texts": {"text": lambda text: text[:-1]},
    "a number for images": {"image": lambda image: image[0, 0, 0]},
    "a number for texts": {"text": lambda text: text[0, 0]},
    "a number for numbers": {"texts": lambda texts: texts[0]},
    "other heads": {"image": lambda image: image[:, :1]},
    "images of another width": {"image": lambda image: image[..., :-1]},
    "images without heads": {"image": lambda image: image.flatten(1)},
    "texts of another width": {"text": lambda text: text[..., :-1]},
    "whole numbers": {"image": lambda image: image.long()},
    "bf16 numbers of texts": {"texts": lambda texts: texts.bfloat16()},
    "numbers of texts in rows": {"texts": lambda texts: texts[:, None]},
    "ends as fractions": {"key_ends": lambda ends: ends.double()},
    "images that are not finite": {"image": lambda image: image / 0},
    "texts that are not finite": {"text": lambda text: text * torch.nan},
}


@pytest.mark.parametrize("changes", SPOILT_TENSORS.values(), ids=SPOILT_TENSORS)
def test_a_file_whose_tensors_are_not_those_of_its_tar_is_named(changes: dict[str, Any], shards: Path, tmp_path: Path) -> None:
    folder = make(job_on(shards, config_of()), tmp_path / "features")
    file = file_of(folder, 0)  # whose texts are read, of all that have the same
    tensors, told = tensors_of(file)
    for name, change in changes.items():
        tensors = {key: value for key, value in tensors.items() if key != name} | (
            {name: change(tensors[name]).contiguous()} if change else {}
        )
    save_file(tensors, file, told)
    with pytest.raises(InputError, match=rf"^features: {file} .*owseg features \.\.\. --verify\)") as caught:
        batches(job_on(shards, config_of(), features=folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["unreadable", "made_with"])
@pytest.mark.parametrize("value", ["[]", "null", "3", '"x"', '{"a": "b"}', '{"0": 5}', "{", "[" * 100_000])
def test_a_file_whose_metadata_are_not_what_is_written_is_named(key: str, value: str, shards: Path, tmp_path: Path) -> None:
    folder = make(job_on(shards, config_of()), tmp_path / "features")
    file = file_of(folder, 1)
    tensors, told = tensors_of(file)
    save_file(tensors, file, {**told, key: value})
    with pytest.raises(InputError, match=rf"^features: {file} .*owseg features \.\.\. --verify\)") as caught:
        batches(job_on(shards, config_of(), features=folder))
    assert "\n" not in str(caught.value)


def test_another_tar_of_the_same_keys_is_refused(shards: Path, tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "shards", samples=16)
    job = job_on(tmp_path / "shards", config_of())
    reading = replace(job, features=make(job, tmp_path / "features"))
    write(job.shards[0], [file for index in range(16) for file in sample(f"{index:08}", "a wall")])
    with pytest.raises(InputError, match=r"was not made of what is now in .*00000\.tar; run"):
        batches(reading)


def test_a_text_that_no_file_has_is_told(shards: Path, tmp_path: Path) -> None:
    job = job_on(shards, config_of())
    method = build(job)
    features = stored_features(
        make(job, tmp_path / "features"), method, job.method, reader_of(job, method), job.normalisation, bf16=False
    )
    assert features is not None
    assert features.read_texts(["a red wall", "a blue wall", "a red wall"]).shape == (3, 32)
    with pytest.raises(InputError, match=r"has none of the text 'a violet wall'; run the features stage"):
        features.read_texts(["a red wall", "a violet wall"])


def test_numbers_that_float16_cannot_hold(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_on(shards, config_of())
    method = build(job)
    assert isinstance(method, FrozenFeatures)
    monkeypatch.setattr(type(method), "image_features", lambda self, image: image.mean(dim=(2, 3)) * 1e6 + 1e6)
    maker = FeatureMaker(method, job.method, ShardReader(job.shards), job.normalisation)
    with pytest.raises(InputError, match=r"do not fit into float16; set train\.features=float32"):
        maker(0, tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": replace(CENTRE, crop="random")},
        {"phases": (Phase(steps=1, train=("projection.",), augment=replace(CENTRE, size=40)), Phase(steps=1, train=("p",)))},
        {"phases": (Phase(steps=1, train=("projection.",), partners=True),)},
    ],
    ids=["random crops", "crops that differ by phase", "partners"],
)
def test_who_sees_images_in_several_ways_reads_no_features(changes: dict[str, Any], shards: Path) -> None:
    config = tiny.talk2dino_config(**{"augment": CENTRE, **changes})
    assert config_of().reads_features
    assert Talk2DinoConfig().reads_features
    assert not config.reads_features
    assert not TclConfig().reads_features
    with pytest.raises(InputError, match=r"^features: talk2dino cannot read them: .*augment\.crop=centre"):
        ensure_frozen(build(job_on(shards, config)), config)
