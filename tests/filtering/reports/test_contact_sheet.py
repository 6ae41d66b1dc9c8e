"""The contact sheet of a download's page: which images, how small, and inert whatever strangers wrote."""

import base64
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from filtering.reports import download_page
from filtering.reports.contact_sheet import HEIGHT, WIDEST, thumbnails
from helpers.download_reports import crawl, report
from helpers.pages import Page

HOSTILE = '"><script>alert(1)</script><img src=http://tracker.example/x onerror=alert(2)>'


def jpeg(width: int, height: int, shade: int) -> bytes:
    return cv2.imencode(".jpg", np.full((height, width, 3), shade, np.uint8))[1].tobytes()


def write_tar(tar: Path, samples: dict[str, tuple[bytes, str]]) -> None:
    with tarfile.open(tar, "w") as file:
        for key, (image, caption) in samples.items():
            for suffix, content in (("jpg", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tars, in the first of which are a wide image, a high one, one that is damaged and one of few pixels."""
    first = {
        "d": (jpeg(4000, 200, 10), "wide"),
        "a": (jpeg(300, 600, 20), HOSTILE),
        "c": (b"\xff\xd8 no jpeg", "damaged"),
        "b": (jpeg(20, 10, 30), "small"),
    }
    write_tar(tmp_path / "00000.tar", first)
    write_tar(tmp_path / "00001.tar", {f"{n:02d}": (jpeg(100, 100, 3 * n), f"caption {n}") for n in range(60)})
    return tmp_path


def test_images_with_the_smallest_keys_of_the_first_shards(shards: Path) -> None:
    sheet = thumbnails(shards, most=5)
    assert [image.caption for image in sheet] == [HOSTILE, "small", "wide", "caption 0", "caption 1"]
    assert sheet == thumbnails(shards, most=5)
    for image, source in zip(sheet, ((300, 600), (20, 10), (4000, 200), (100, 100), (100, 100)), strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(image.jpeg)))
        assert shown.size == (image.width, image.height)
        assert image.height <= HEIGHT
        assert image.width <= WIDEST * HEIGHT
        assert image.width / image.height == pytest.approx(source[0] / source[1], rel=0.1)


def test_captions_on_the_sheet_are_inert(shards: Path) -> None:
    content = report(shards / "tables", crawl(0, 20, 5))
    download_page.write(shards / "page.html", content, thumbnails(shards))
    page = Page((shards / "page.html").read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 36
    assert all((attributes["src"] or "").startswith("data:image/jpeg;base64,") for attributes in images)
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert images[0]["alt"] == HOSTILE


def test_a_download_without_tars_has_no_sheet(tmp_path: Path) -> None:
    report(tmp_path, crawl(0, 20, 5))
    assert "There is no image to show." in (tmp_path / "report.html").read_text(encoding="utf-8")
