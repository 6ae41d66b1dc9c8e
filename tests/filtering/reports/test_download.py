"""The download's report: no link is lost, its figures are right, its memory is bounded, foreign text is inert."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError
from filtering.files import write_table
from filtering.images import reasons
from filtering.images.download import download_corpus
from filtering.images.image_config import ImageConfig
from filtering.images.reasons import FAILURES, failure_of
from filtering.images.resize import Resize
from filtering.reports.download import numbers, write
from filtering.reports.download_meanings import meaning_of
from filtering.schema import STATUS
from helpers.download_reports import SETTINGS, crawl, folder, link, report
from helpers.download_web import HOST, Web
from helpers.downloads import config_for, images, pages, write_corpus
from helpers.pages import Page


def test_no_link_is_lost(tmp_path: Path) -> None:
    """Rows, obtained and lost, classes, reasons and hosts: every way to add up gives the rows of the tables."""
    rows = [*crawl(0, 5000, 700), link(None, "bad_url"), link("ftp://x/y", "bad_scheme"), link("http://a.b/c", None)]
    content = report(tmp_path, rows, shard=700)
    assert content["links"] == 5003 == sum(pq.read_metadata(path).num_rows for path in tmp_path.glob("*.parquet"))
    expected = Counter(row["status"] or "no_status" for row in rows)
    assert content["obtained"] == expected.pop("success")
    assert {row["reason"]: row["links"] for row in content["by_reason"]} == expected
    assert [row["links"] for row in content["by_reason"]] == sorted(expected.values(), reverse=True)
    for failure in FAILURES:
        of_class = sum(number for status, number in expected.items() if failure_of(status) == failure)
        assert content["by_failure"][failure]["links"] == of_class > 0
    assert content["obtained"] + sum(row["links"] for row in content["by_failure"].values()) == content["links"]
    assert {row["failure"] for row in content["by_reason"]} == set(FAILURES)
    assert sum(row["share"] for row in content["by_reason"]) + content["obtained_share"] == pytest.approx(1)
    for row in [*content["hosts"]["most"]["hosts"], *content["hosts"]["worst"]["hosts"]]:
        assert row["links"] == row["obtained"] + row["permanent"] + row["transient"] + row["policy"]
    assert json.loads((tmp_path / "report.json").read_text()) == content


def test_a_real_download_and_its_report_agree(tmp_path: Path) -> None:
    urls = [*images(9), *images(3, "&copy=1"), *pages("/status/404", "/status/404?2", "/status/503", "/html", "/tiny")]
    with Web() as web:
        config = config_for(web, attempts=1)
        summary = download_corpus(config, write_corpus(tmp_path / "corpus", urls), tmp_path / "shards")
    content = write(tmp_path / "shards", summary, asdict(config))
    assert {row["reason"]: row["links"] for row in content["by_reason"]} | {"success": 12} == summary["by_status"]
    assert {failure: row["links"] for failure, row in content["by_failure"].items()} == summary["by_failure"]
    assert content["bytes"]["fetched"] == summary["bytes"]
    assert content["duplicates"]["same_bytes"] == {"images": 3, "originals": 3}
    assert content["duplicates"]["near"]["near_duplicates"] >= 3
    (host,) = content["hosts"]["most"]["hosts"]
    assert (host["host"], host["links"], host["obtained"], host["reason"]) == (HOST, 17, 12, "http_404")
    assert (content["sizes"]["unit"], content["requests"]["total"]) == (10, 17)


def test_tables_that_do_not_add_up_to_the_download_are_no_report(tmp_path: Path) -> None:
    summary = folder(tmp_path, crawl(0, 30, 5), shard=10)
    (tmp_path / "00001.parquet").unlink()
    with pytest.raises(InputError, match=r"hold 20 links, but 30 were downloaded[^\n]*run it again$"):
        write(tmp_path, summary, SETTINGS)
    assert not list(tmp_path.glob("report.*"))


def test_a_strange_table_is_named(tmp_path: Path) -> None:
    summary = folder(tmp_path, crawl(0, 3, 5))
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "2024.parquet")
    with pytest.raises(InputError, match=r"2024\.parquet: column 'key' is missing"):
        write(tmp_path, summary, SETTINGS)


def test_images_as_counted_by_hand(tmp_path: Path) -> None:
    same = {"sha256": "ab" * 32, "phash": "00000000000000ff", "bytes": 50_000}
    rows = [
        *(link(f"http://h/{n}", **same, attempts=3) for n in range(3)),
        link("http://h/3", phash="00000000000000f8", bytes=2_000_000, original_width=50, original_height=9000),
        link("http://h/4", phash="ffffffffffffff00", bytes=60_000, width=512, height=700),
        link("http://h/5", "too_small", original_width=20, original_height=30, bytes=7),
        link("http://h/6", "http_404"),
    ]
    content = report(tmp_path, rows)
    assert content["duplicates"]["same_bytes"] == {"images": 2, "originals": 1}
    near = content["duplicates"]["near"]
    assert (near["images"], near["near_duplicates"], near["groups"], near["distance"]) == (5, 3, 1, 3)
    assert near["largest"] == [{"images": 4, "phash": "00000000000000ff"}]
    assert content["requests"] == {"total": 13, "per_link": 13 / 7, "most": 3}
    assert content["bytes"]["fetched"] == 2_210_007
    assert content["bytes"]["median_image"] == pytest.approx(50_000, rel=0.011)
    sizes = content["sizes"]
    assert sizes["unit"] == 100
    assert sizes["original"] == [2, 0, 0, 0, 4]
    assert sizes["kept"] == [4, 0, 0, 0, 0, 1]
    found = numbers(content)
    assert found["near_duplicate_images"] == 3.0
    assert found["failure/policy"] == found["failure/permanent"] == 1.0
    assert found["success_share"] == pytest.approx(5 / 7)
    assert all(isinstance(value, float) for value in found.values())


def test_plain_images_are_no_lookalikes_and_the_page_says_so(tmp_path: Path) -> None:
    """One colour, another colour, and stripes: their hash is the same, and not because they look alike."""
    x, resize = np.arange(100), Resize(ImageConfig())
    stripes, picture = np.tile(x // 10 % 2 * 255, (100, 1)), np.outer(x, x % 37) % 255
    pictures = [np.full((100, 100), 20), np.full((100, 100), 200), stripes, picture]
    hashes = [resize(cv2.imencode(".png", picture.astype(np.uint8))[1].tobytes()).phash for picture in pictures]
    near = report(tmp_path, [link(f"http://h/{n}", phash=value) for n, value in enumerate(hashes)])["duplicates"]["near"]
    assert (near["images"], near["near_duplicates"], near["groups"], near["plain"]) == (1, 0, 0, 3)
    assert "3 images too plain to be compared" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("width", "unit"), [(32, 1), (300, 10), (4000, 100), (60_000, 100)])
def test_sizes_fit_a_chart_and_none_is_left_out(tmp_path: Path, width: int, unit: int) -> None:
    rows = [link(f"http://h/{n}", original_width=width, original_height=width) for n in range(50)]
    sizes = report(tmp_path, [link("http://h/x", width=20, height=20), *rows])["sizes"]
    assert sum(sizes["original"]) == sum(sizes["kept"]) == 51
    assert sizes["unit"] >= unit if width < 72 else sizes["unit"] == unit


@pytest.mark.parametrize("rows", [[], [link("http://h/1", "http_404")], [link("http://h/1")]], ids=["none", "lost", "obtained"])
def test_extremes_make_a_report(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    content = report(tmp_path, rows)
    assert content["links"] == len(rows)
    page = (tmp_path / "report.html").read_text()
    assert "nan" not in page.replace("tenance", "")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_same_tables_same_bytes_and_no_trace_of_people_or_machines(tmp_path: Path) -> None:
    rows = [*crawl(2, 300, 40), link("https://pics.example/jane.doe@mail.example/+49-151-1234567.jpg?token=secret", "http_404")]
    for name in ("one", "two"):
        report(tmp_path / name, rows)
    for file in ("report.html", "report.json", "report.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    for file in ("report.html", "report.json"):
        written = (tmp_path / "one" / file).read_text()
        assert "pics.example" in written
        for private in (
            "jane",
            "1234567",
            "secret",
            "mail.example",
            "127.0.0.1",
            "10.9.8",
            "our-bucket",
            str(tmp_path),
            ".jpg",
        ):
            assert private not in written
    assert not list(tmp_path.rglob("*.tmp"))


def test_hostile_hosts_and_statuses_are_inert(tmp_path: Path) -> None:
    hosts = [
        "<script>alert(1)<",
        "</style><img",
        "$x^2$",
        "\u202eelpmaxe.h",
        "x" * 5000,
        "'\"><b",
        "\x1b[31m",
        "كلب.example",
        "<!--",
    ]
    rows = [link(f"http://{host}/1", "http_404") for host in hosts] + [link("http://h", "<i onclick=x>")]
    report(tmp_path, rows)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert {tag for tag, _ in page.elements} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "h1", "h2", "h3", "p", "table"),
        *(
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "dl",
            "dt",
            "dd",
            "figure",
            "figcaption",
            "a",
            "i",
            "small",
            "code",
            "bdi",
            "div",
        ),
        *("svg", "rect", "line", "text"),
    }
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "action", "srcset")]
        if "href" in attributes:
            assert tag == "a"
            assert (attributes["href"] or "").removeprefix("#") in ids
    assert "<script>alert(1)<" in page.text
    assert not set("\u202e\x1b") & set(html)
    assert not re.search(r"@import|url\(|expression\(", html)
    assert "default-src 'none'" in html


def test_every_reason_has_words_of_its_own_and_advice() -> None:
    source = Path(reasons.__file__)
    named = set(re.findall(r'"([a-z_0-9]+)"', source.read_text())) - {*FAILURES, "success", "http_5"}
    permanent = {"dns_unknown", "http_404", "bad_url", "bad_http", "not_an_image", "truncated", "undecodable", "no_image"}
    for status in named | permanent | {"no_such_sample", "http_500", "http_403"}:
        meaning = meaning_of(status)
        assert "no words for" not in meaning.says
        assert meaning.says.endswith(".")
        assert meaning.advice
    assert meaning_of("http_503").says == "The host answered 'Service Unavailable'."
    assert meaning_of("http_599").says == "The host answered with code 599."
    assert "next run" in meaning_of("http_599").advice
    assert "no words for" in meaning_of("brand_new").says


def test_captions_of_one_image_are_counted_beside_it(tmp_path: Path) -> None:
    several = {"captions": ["a cat", "a dog", "a cow"], "caption_entities": [["cat"], ["dog"], ["cow"]]}
    rows = [
        link("http://a.example/1", **several),
        link("http://a.example/2", "http_404", **several),
        link("http://a.example/3"),
    ]
    content = report(tmp_path, rows)
    assert (content["links"], content["captions"], content["obtained"]) == (3, 7, 2)
    assert "7 captions of 3 links → 2 images" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match=r"tables hold 7 captions, but 8 were downloaded"):
        write(tmp_path, {"links": 3, "captions": 8, "digest": ""}, SETTINGS)
    report(tmp_path / "alone", rows[2:])
    assert " captions of 1 link" not in (tmp_path / "alone" / "report.html").read_text()


def test_memory_does_not_grow_with_the_links(tmp_path: Path) -> None:
    """Twenty times as many dead links, each of a host of its own, in as much memory: the peak of a process of its own."""
    code = (
        "import sys; from pathlib import Path; from filtering.reports.download_tally import Tally;"
        "tally = Tally(sorted(Path(sys.argv[1]).glob('*.parquet'))); status = Path('/proc/self/status').read_text();"
        "print(tally.rows, status.split('VmHWM:')[1].split()[0])"
    )
    peaks = {}
    for shards in (3, 60):
        out = tmp_path / str(shards)
        for number in range(shards):
            rows = 4000
            columns: dict[str, Any] = {name: pa.nulls(rows, STATUS.field(name).type) for name in STATUS.names}
            columns["url"] = pa.array([f"http://host-{number}-{n}.example/photo.jpg" for n in range(rows)])
            columns["status"] = pa.array(["dns_unknown"] * rows)
            write_table(out / f"{number:05d}.parquet", pa.table(columns, schema=STATUS))
        printed = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True).stdout
        read, peaks[shards] = map(int, printed.split())
        assert read == shards * rows
    assert peaks[60] < peaks[3] + 30_000  # kB; counters of all hosts would take three times as much
