"""What images are stored as: JPEG, PNG, WebP, or the original file; and that a rerun takes them from where they lie."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from filtering import InputError
from filtering.captions.reader import SourceConfig, read_links
from filtering.images.captioned import CaptionedImage
from filtering.images.download import DownloadConfig, content_digest, download_corpus
from filtering.images.from_tars import select_corpus
from filtering.images.image_config import ImageConfig
from filtering.images.resize import Resize, img2dataset_resizer
from filtering.images.results import Known, Results, Validity
from filtering.schema import CORPUS, SAMPLE
from helpers.download_web import Web, picture
from helpers.downloads import config_for, contents, images, write_corpus
from helpers.pictures import difference, saved, scene


def done(data: bytes, **settings: Any) -> Any:
    return Resize(ImageConfig(**settings))(data)


def opened(data: bytes) -> tuple[str | None, Any]:
    with Image.open(io.BytesIO(data)) as image:
        return image.format, np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("encode_format", "kind", "tolerance"), [("jpg", "JPEG", 3), ("png", "PNG", 0), ("webp", "WEBP", 4)])
@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_formats(encode_format: str, kind: str, tolerance: float, pixels: str) -> None:
    data = saved(scene(), "PNG")
    kept = done(data, encode_format=encode_format, pixels=pixels)
    assert (kept.status, kept.extension, kept.width, kept.height) == ("success", encode_format, 96, 64)
    found, shown = opened(kept.image)
    assert found == kind
    assert difference(shown, scene()) <= tolerance


@pytest.mark.parametrize(("encode_format", "quality"), [("png", 6), ("webp", 80)])
def test_formats_of_img2dataset_are_its_bytes(encode_format: str, quality: int) -> None:
    data = picture(1, (200, 120))
    theirs = img2dataset_resizer()(64, "border", True, encode_format=encode_format, encode_quality=quality)
    kept = done(data, image_size=64, resize_mode="border", encode_format=encode_format, quality=80, pixels="img2dataset")
    assert kept.image == theirs(io.BytesIO(data))[0]


def test_quality_is_that_of_webp_too() -> None:
    data = saved(scene((300, 200)), "PNG")
    small, large = (len(done(data, encode_format="webp", quality=quality).image) for quality in (10, 95))
    assert 2 * small < large


def test_a_webp_has_its_own_largest_side() -> None:
    wide = saved(Image.new("RGB", (16_384, 40)), "PNG")
    kept = done(wide, encode_format="webp", image_size=64, max_aspect=1_000)
    assert (kept.status, kept.message) == ("too_many_pixels", "a WebP has 16383 pixels a side at most")
    assert done(wide, encode_format="png", image_size=64, max_aspect=1_000).status == "success"


def turned(kind: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(scene(), kind, exif=exif, **options)


ANIMATION = saved(scene(), "GIF", save_all=True, append_images=[scene(seed=1), scene(seed=2)])
ORIGINALS: dict[str, tuple[bytes, str, tuple[int, int]]] = {
    "JPEG": (picture(), "jpg", (96, 64)),
    "JPEG that lies on its side": (turned("JPEG"), "jpg", (64, 96)),
    "JPEG with something behind": (picture() + b"trailing", "jpg", (96, 64)),
    "several JPEGs in one": (saved(scene(), "MPO", save_all=True, append_images=[scene(seed=1)]), "jpg", (96, 64)),
    "PNG": (picture(0, (96, 64), "PNG"), "png", (96, 64)),
    "PNG of 16 bits": (saved(Image.fromarray(np.full((64, 96), 999, np.uint16)), "PNG"), "png", (96, 64)),
    "transparent WebP": (saved(scene().convert("RGBA"), "WEBP"), "webp", (96, 64)),
    "WebP that lies on its side": (turned("WEBP"), "webp", (64, 96)),
    "animation": (ANIMATION, "gif", (96, 64)),
    "BMP": (picture(0, (96, 64), "BMP"), "bmp", (96, 64)),
    "AVIF": (picture(0, (96, 64), "AVIF"), "avif", (96, 64)),
}


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_original_bytes_are_kept(name: str, pixels: str) -> None:
    data, extension, size = ORIGINALS[name]
    kept = done(data, resize_mode="no", pixels=pixels, image_size=8, quality=1)
    assert (kept.status, kept.extension, kept.width, kept.height) == ("success", extension, *size)
    assert kept.image == data
    assert kept.phash == done(data, image_size=2**14).phash


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (picture()[:-200], "truncated"),
        (b"<html>", "not_an_image"),
        (picture(0, (20, 20)), "too_small"),
        (picture(0, (96, 64), "WEBP")[:-40], "undecodable"),
    ],
)
def test_original_bytes_are_checked_like_others(data: bytes, status: str) -> None:
    assert done(data, resize_mode="no").status == status


def test_a_format_for_files_that_are_kept_as_they_are_is_a_mistake() -> None:
    with pytest.raises(InputError, match=r"^encode_format: resize_mode=no keeps the original files"):
        ImageConfig(resize_mode="no", encode_format="png")


def test_what_was_stored_before_there_was_a_choice_of_formats_stays_valid() -> None:
    assert set(ImageConfig().content) == {
        *("image_size", "resize_mode", "resize_only_if_bigger", "min_side", "max_aspect", "max_area", "quality", "pixels"),
    }
    kinds = [{}, {"encode_format": "png"}, {"encode_format": "webp"}, {"resize_mode": "no"}]
    assert len({content_digest(DownloadConfig(image=ImageConfig(**kind))) for kind in kinds}) == 4  # type: ignore[arg-type]
    assert ImageConfig(max_seconds=1.0).content == ImageConfig().content


@pytest.mark.parametrize("image", [ImageConfig(image_size=48, encode_format="png"), ImageConfig(resize_mode="no")])
def test_a_rerun_takes_other_formats_from_the_shards_too(web: Web, tmp_path: Path, image: ImageConfig) -> None:
    config = replace(config_for(web), image=image)
    corpus, out = tmp_path / "corpus", tmp_path / "shards"
    download_corpus(config, write_corpus(corpus, images(8)), out)
    asked = web.requests.copy()
    download_corpus(config, write_corpus(corpus, images(30)), out)  # dealt out anew
    assert sorted(web.requests - asked) == sorted(f"/image?seed={seed}" for seed in range(8, 30))
    download_corpus(config, corpus, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")
    suffix = ".jpg" if image.resize_mode == "no" else ".png"
    found = 0
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            found += sum(name.endswith(suffix) for name in tar.getnames())
    assert found == 30


def test_a_journal_remembers_the_kind_of_file(tmp_path: Path) -> None:
    validity = Validity(images="i", rules="r")
    record = {"status": "success", "attempts": 1, "bytes": 3, "extension": "webp"}
    image = CaptionedImage("a", [{"key": "a"}])
    with Results(tmp_path, Known([], validity), validity, "none") as results:
        results.add(image, record, b"abc")
    with Results(tmp_path, Known([], validity), validity, "none") as results:
        assert (results.record(image)["extension"], results.body(image)) == ("webp", b"abc")
    known = Known([image], validity)
    known.add_journal(tmp_path / validity.journal)
    assert (known.records["a"]["extension"], known.body("a")) == ("webp", b"abc")


def test_originals_out_of_tars(tmp_path: Path) -> None:
    """Formats side by side in one shard, each file under its own extension and with its own bytes."""
    kinds = {"a": "JPEG", "b": "PNG", "c": "WEBP", "d": "GIF"}
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name, kind in kinds.items():
            data = picture(ord(name), (96, 64), kind)
            for suffix, body in (("jpg", data), ("txt", f"a cat in box {name}".encode())):
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
    source = SourceConfig(path=str(tmp_path / "photos.tar"), format="webdataset")
    rows = [row for table in read_links(source) for row in table.to_pylist()]
    table = pa.Table.from_pylist([{**row, "entities": ["cat"]} for row in rows], schema=CORPUS.append(SAMPLE))
    corpus = write_corpus(tmp_path / "corpus", table)
    select_corpus(DownloadConfig(image=ImageConfig(resize_mode="no")), corpus, tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert sorted(name.partition(".")[2] for name in files if name[-3:] != "txt" and name[-4:] != "json") == [
        *("gif", "jpg", "png", "webp"),
    ]
    for name, body in files.items():
        if name.endswith((".gif", ".jpg", ".png", ".webp")):
            about = json.loads(files[f"{name.partition('.')[0]}.json"])
            assert hashlib.sha256(body).hexdigest() == about["sha256"]
            assert body == picture(ord(about["caption"][-1]), (96, 64), kinds[about["caption"][-1]])
