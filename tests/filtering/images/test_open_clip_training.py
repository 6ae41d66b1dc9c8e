"""What was downloaded trains a CLIP: one real step of open_clip's, from shards that its own loader reads."""

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
import webdataset as wds
from PIL import Image

from filtering.images.download import download_corpus
from helpers.download_web import Web
from helpers.downloads import config_for, images, pages, write_corpus
from helpers.paths import REPO
from owseg.encoders import Encoder, EncoderConfig, build_encoder

URLS = images(24)
CAPTIONS = {f"a cat at {url}" for url in URLS}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images and some failures, fetched from a real server."""
    folder = tmp_path_factory.mktemp("download")
    with Web() as web:
        corpus = write_corpus(folder / "corpus", [*URLS, *pages("/status/404", "/html", "/truncated")])
        assert download_corpus(config_for(web), corpus, folder / "shards")["success"] == len(URLS)
    return folder / "shards"


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(model=str(REPO / "configs" / "smoke_clip.json"), pretrained=""))


def step(encoder: Encoder, pictures: torch.Tensor, texts: torch.Tensor) -> None:
    """One optimiser step on CLIP's loss: it is finite, every part of the model learns, and the loss falls."""
    clip = encoder.clip.train()
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5)  # so short that the gradient decides, whatever crops were drawn
    before = {name: weight.detach().clone() for name, weight in clip.named_parameters()}

    def loss() -> torch.Tensor:
        image_features, text_features, scale = clip(pictures, texts)
        return loss_of(image_features, text_features, scale)  # type: ignore[no-any-return]

    first = loss()
    first.backward()
    optimizer.step()
    assert torch.isfinite(first)
    assert all(torch.isfinite(weight).all() for weight in clip.parameters())
    still = [name for name, weight in clip.named_parameters() if torch.equal(weight, before[name])]
    assert still == []
    assert loss() < first


def test_a_step_from_open_clips_training_loader(shards: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("open_clip_train.data")
    # webdataset > 0.2.86 yields an empty end-of-shard sample, at which open_clip 3.3's loader stumbles with anybody's shards.
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    sizes = json.loads((shards / "sizes.json").read_text())
    first, *_, last = [Path(name).stem for name in sizes]
    args = SimpleNamespace(
        train_data=f"{shards}/{{{first}..{last}}}.tar",
        train_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        workers=0,
        world_size=1,
        batch_size=8,
    )
    preprocess = open_clip.image_transform(64, is_train=True)
    read: list[str] = []

    def tokenize(text: str) -> torch.Tensor:
        read.append(text)
        return encoder.tokenize(text)

    info = data.get_wds_dataset(args, preprocess, True, tokenizer=tokenize)
    assert info.dataloader.num_samples == sum(sizes.values()) == len(URLS)
    batches = list(info.dataloader)
    assert [tuple(pictures.shape) for pictures, _ in batches] == [(8, 3, 64, 64)] * 3
    assert len(read) == len(URLS)
    assert set(read) == CAPTIONS
    pictures, texts = batches[0]
    step(encoder, pictures, texts)


def test_a_step_from_plain_webdataset(shards: Path, encoder: Encoder) -> None:
    preprocess = open_clip.image_transform(64, is_train=False)

    def samples() -> Iterator[tuple[Image.Image, dict[str, Any], str]]:
        paths = sorted(map(str, shards.glob("*.tar")))
        yield from wds.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("jpg", "json", "txt")

    found = list(samples())
    assert {text for *_, text in found} == CAPTIONS
    assert len(found) == len(URLS)
    for picture, about, text in found:
        assert (picture.width, picture.height) == (about["width"], about["height"]) == (72, 48)
        assert about["caption"] == text
    step(encoder, torch.stack([preprocess(picture) for picture, *_ in found]), encoder.tokenize([text for *_, text in found]))


def test_the_stored_images_are_plain_colour_jpegs(shards: Path) -> None:
    for sample in wds.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False):
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
