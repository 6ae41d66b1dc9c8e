"""Links to shards against a real server: what is written, what is asked for again, and that the bytes are always the same."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from download_web import HOST, Web, picture

from filtering.download import DownloadConfig, DownloadShard, download_corpus
from filtering.fetch import FetchConfig
from filtering.image import ImageConfig
from filtering.schema import CORPUS, STATUS, key_of
from filtering.stage import InputError, digest_of_file
from miniature.server import serve

FAULTS = {
    "/status/404": "http_404",
    "/status/410": "http_410",
    "/html": "not_an_image",
    "/truncated": "truncated",
    "/huge": "too_many_pixels",
    "/tiny": "too_small",
    "/robots?tag=noai": "opt_out",
    "/loop/50": "too_many_redirects",
    "/endless": "too_large",
    "/status/503": "http_503",
    "/drip": "timeout",
}


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        yield web


def config_for(web: Web, **settings: object) -> DownloadConfig:
    settings = {"timeout": 3.0, "backoff": 0.01, "max_bytes": 10**6, "connect_to": web.connect_to, **settings}
    fetch = FetchConfig(**settings)  # type: ignore[arg-type]
    return DownloadConfig(fetch=fetch, image=ImageConfig(image_size=48), shard_size=10)


def images(count: int, query: str = "") -> list[str]:
    return [f"http://{HOST}/image?seed={seed}{query}" for seed in range(count)]


def table_of(urls: list[str]) -> pa.Table:
    rows = [
        {"key": key_of(url, f"a cat at {url}"), "url": url, "caption": f"a cat at {url}", "entities": ["cat"]} for url in urls
    ]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def write_corpus(folder: Path, urls: list[str], files: int = 2) -> Path:
    (folder / "kept").mkdir(parents=True)
    for i in range(files):
        pq.write_table(table_of(urls[i::files]), folder / "kept" / f"{i:05d}.parquet")
    return folder


def contents(folder: Path, suffix: str = "") -> dict[str, str]:
    return {path.name: digest_of_file(path) for path in sorted(folder.glob(f"[0-9]*{suffix}"))}


def statuses(out: Path) -> list[dict[str, object]]:
    return [row for path in sorted(out.glob("[0-9]*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_link_gets_a_row_and_every_image_a_sample(web: Web, tmp_path: Path) -> None:
    urls = [*images(12), f"http://{HOST}/heal?times=1&seed=77", *(f"http://{HOST}{path}" for path in FAULTS)]
    corpus, out = write_corpus(tmp_path / "corpus", urls), tmp_path / "shards"
    report = download_corpus(config_for(web), corpus, out)

    rows = statuses(out)
    assert pq.read_schema(out / "00000.parquet").equals(STATUS)
    assert [row["key"] for row in rows] == sorted(key_of(url, f"a cat at {url}") for url in urls)
    by_url = {str(row["url"]).removeprefix(f"http://{HOST}"): row for row in rows}
    assert {path: by_url[path]["status"] for path in FAULTS} == FAULTS
    assert {path for path, row in by_url.items() if row["retryable"]} == {"/drip", "/status/503"}
    assert by_url["/heal?times=1&seed=77"]["attempts"] == 2
    assert (by_url["/huge"]["original_width"], by_url["/huge"]["width"]) == (10_000, None)
    assert by_url["/truncated"]["sha256"] == hashlib.sha256(picture()[:-200]).hexdigest()

    assert {name: report[name] for name in ("links", "success", "retryable", "shards")} == {
        "links": 24,
        "success": 13,
        "retryable": 2,
        "shards": 3,
    }
    assert report["by_status"] == {"success": 13, **dict.fromkeys(FAULTS.values(), 1)}
    assert report["bytes"] == sum(row["bytes"] for row in rows)  # type: ignore[misc]
    sizes = json.loads((out / "sizes.json").read_text())
    assert list(sizes) == ["00000.tar", "00001.tar", "00002.tar"]
    assert sum(sizes.values()) == 13
    stats = json.loads((out / "00000_stats.json").read_text())
    assert stats["count"] == 10
    assert stats["count"] == stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"]
    assert sum(stats["status_dict"].values()) == 10


def test_the_tar_is_laid_out_as_img2dataset_lays_it_out(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    download_corpus(config_for(web), write_corpus(tmp_path / "corpus", images(8)), out)
    with tarfile.open(out / "00000.tar") as tar:
        members = tar.getmembers()
        files = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    keys = sorted({name.split(".")[0] for name in files})
    assert [member.name for member in members] == [f"{key}.{kind}" for key in keys for kind in ("jpg", "json", "txt")]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {(0, 0, 0, "", 0o644)}
    for row in statuses(out):
        sample = json.loads(files[f"{row['key']}.json"])
        assert sample == {name: row[name] for name in sample}
        assert set(sample) == {*CORPUS.names, "status", "sha256", "width", "height", "original_width", "original_height"}
        assert files[f"{row['key']}.txt"].decode() == row["caption"]
        seed = int(str(row["url"]).split("=")[1])
        assert row["sha256"] == hashlib.sha256(picture(seed)).hexdigest()
        assert (row["original_width"], row["original_height"], row["width"], row["height"]) == (96, 64, 72, 48)


def test_the_same_links_give_the_same_bytes(web: Web, tmp_path: Path) -> None:
    urls = [*images(25), f"http://{HOST}/status/404", f"http://{HOST}/truncated"]
    one = download_corpus(config_for(web), write_corpus(tmp_path / "a", urls), tmp_path / "one")
    shuffled = write_corpus(tmp_path / "b", urls[::-1], files=5)
    two = download_corpus(config_for(web, concurrency=1, per_host=1), shuffled, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one", ".tar")) == 3
    assert one == two


def test_the_digest_does_not_depend_on_how_often_a_server_had_to_be_asked(web: Web, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [*images(3), f"http://{HOST}/heal?times=1"])
    first = download_corpus(config_for(web), corpus, tmp_path / "one")
    second = download_corpus(config_for(web), corpus, tmp_path / "two")
    attempts = [sorted(row["attempts"] for row in statuses(tmp_path / out)) for out in ("one", "two")]  # type: ignore[type-var]
    assert attempts == [[1, 1, 1, 2], [1, 1, 1, 1]]
    assert first["digest"] == second["digest"]
    assert contents(tmp_path / "one", ".tar") == contents(tmp_path / "two", ".tar")


def test_a_second_run_asks_for_nothing(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", [*images(12), f"http://{HOST}/status/503"]), tmp_path / "shards"
    first = download_corpus(config_for(web), corpus, out)
    asked = web.requests.total()
    assert download_corpus(config_for(web, concurrency=2, timeout=9.0), corpus, out) == first
    assert web.requests.total() == asked


def test_a_smaller_corpus_leaves_no_shard_of_the_larger_behind(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    download_corpus(config_for(web), write_corpus(tmp_path / "large", images(30)), out)
    download_corpus(config_for(web), write_corpus(tmp_path / "small", images(10)), out)
    assert list(contents(out)) == ["00000.parquet", "00000.tar", "00000_stats.json"]
    assert json.loads((out / "sizes.json").read_text()) == {"00000.tar": 10}


def test_other_image_settings_make_other_shards(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(3)), tmp_path / "shards"
    first = download_corpus(config_for(web), corpus, out)
    second = download_corpus(replace(config_for(web), image=ImageConfig(image_size=32)), corpus, out)
    assert first["digest"] != second["digest"]
    assert {row["height"] for row in statuses(out)} == {32}


def test_a_killed_shard_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    urls = [*images(40, "&wait=0.05"), f"http://{HOST}/status/404"]
    config = replace(config_for(web, per_host=2), shard_size=100)
    corpus, out = write_corpus(tmp_path / "corpus", urls), tmp_path / "killed"
    code = (
        "import sys; from pathlib import Path; from filtering.download import *;"
        f"download_corpus({config!r}, Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    imports = "from filtering.fetch import FetchConfig; from filtering.image import ImageConfig;"
    process = subprocess.Popen([sys.executable, "-c", imports + code, str(corpus), str(out)])
    try:
        scratch = out / "_work" / "00000"
        while process.poll() is None and web.requests.total() < 12:
            time.sleep(0.01)
        assert process.poll() is None, "the victim ended by itself"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (journal,) = scratch.glob(".journal-*")
    finished = finished_links(journal.read_bytes())
    in_flight = config.fetch.per_host  # a link counts as in flight until its record is written
    assert web.requests.total() - in_flight <= len(finished) < len(urls)
    with journal.open("ab") as file:
        file.write(b'["torn", 5000, {"status": "success"}]\n half a picture')

    before = web.requests.copy()
    report = download_corpus(config, corpus, out)
    again = web.requests - before
    for row in statuses(out):
        asked = again[str(row["url"]).removeprefix(f"http://{HOST}")]
        assert (asked == 0) == (row["key"] in finished)
    undisturbed = download_corpus(config, corpus, tmp_path / "undisturbed")
    assert report == undisturbed
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not (out / "_work" / "00000").exists()


def finished_links(journal: bytes) -> set[str]:
    """The keys of the whole records, read independently of the code under test."""
    keys, at = set(), 0
    while (end := journal.find(b"\n", at)) >= 0:
        key, length, _ = json.loads(journal[at:end])
        if end + 1 + length > len(journal):
            break
        keys.add(key)
        at = end + 1 + length
    return keys


def test_what_may_pass_is_asked_again_by_an_interrupted_shard(web: Web, tmp_path: Path) -> None:
    urls = [f"http://{HOST}/status/404", f"http://{HOST}/heal?times=3&seed=1", f"http://{HOST}/image"]
    shard = DownloadShard(config_for(web, attempts=3))
    (tmp_path / "00000").mkdir()
    first = shard(table_of(urls), tmp_path / "00000")
    assert (first["status/success"], first["status/http_500"], first["retryable"]) == (1, 1, 1)
    second = shard(table_of(urls), tmp_path / "00000")
    assert (second["status/success"], second["status/http_404"], second["retryable"]) == (2, 1, 0)
    assert web.requests == {"/status/404": 1, "/heal?times=3&seed=1": 4, "/image": 1}


def test_a_dead_network_is_no_result(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(12)), tmp_path / "shards"
    with pytest.raises(InputError, match=r"^nothing could be fetched: 12 of 12 links failed with 'dns' \(.*\)[^\n]*$"):
        download_corpus(config_for(web, connect_to={}, attempts=1), corpus, out)
    assert {(row["status"], row["retryable"]) for row in statuses(out)} == {("dns", True)}
    assert not (out / "sizes.json").exists()
    assert download_corpus(config_for(web), corpus, out)["success"] == 12
    assert web.requests.total() == 12


def test_a_shard_without_any_image_is_an_empty_tar(web: Web, tmp_path: Path) -> None:
    urls = [f"http://{HOST}/status/404?{i}" for i in range(15)] + [f"http://{HOST}/image"]
    out = tmp_path / "shards"
    download_corpus(config_for(web), write_corpus(tmp_path / "corpus", urls), out)
    sizes = json.loads((out / "sizes.json").read_text())
    assert sorted(sizes.values()) == [0, 1]
    assert len(list(wds.WebDataset(sorted(map(str, out.glob("*.tar"))), shardshuffle=False))) == 1


def test_open_clip_reads_the_shards(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("open_clip_train.data")
    # webdataset > 0.2.86 yields an empty end-of-shard sample, at which open_clip 3.3's loader stumbles with anybody's shards.
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    download_corpus(config_for(web), write_corpus(tmp_path / "corpus", images(24)), tmp_path / "shards")
    args = SimpleNamespace(
        train_data=str(tmp_path / "shards" / "{00000..00002}.tar"),
        train_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        workers=0,
        world_size=1,
        batch_size=4,
    )
    info = data.get_wds_dataset(args, lambda image: np.asarray(image.convert("RGB")), True, tokenizer=lambda text: [text])
    assert info.dataloader.num_samples == 24  # from sizes.json
    batches = list(info.dataloader)
    assert len(batches) == 6
    assert {text for _, texts in batches for text in texts} == {f"a cat at {url}" for url in images(24)}
    assert batches[0][0][0].shape == (48, 72, 3)


def test_the_faults_of_the_miniature_web(tmp_path: Path) -> None:
    faults = {
        "404": {},
        "410": {},
        "heal": {"after": 2},
        "drip": {},
        "html": {},
        "truncated": {},
        "noai": {},
        "redirect": {"to": "/fine.jpg"},
    }
    (tmp_path / "web").mkdir()
    for i, name in enumerate(["fine", *faults]):
        (tmp_path / "web" / f"{name}.jpg").write_bytes(picture(i))
    table = {f"/{name}.jpg": {"fault": name, **details} for name, details in faults.items()}
    (tmp_path / "web" / "faults.json").write_text(json.dumps(table))
    urls = [f"http://photos-{i}.miniature.test/{name}.jpg" for i, name in enumerate(["fine", *faults])]
    with serve(tmp_path / "web") as address:
        fetch = FetchConfig(connect_to={"*.miniature.test": address}, timeout=3.0, backoff=0.01)
        out = tmp_path / "shards"
        download_corpus(DownloadConfig(fetch=fetch), write_corpus(tmp_path / "corpus", urls), out)
    assert {Path(str(row["url"])).stem: row["status"] for row in statuses(out)} == {
        "fine": "success",
        "404": "http_404",
        "410": "http_410",
        "heal": "success",
        "drip": "timeout",
        "html": "not_an_image",
        "truncated": "truncated",
        "noai": "opt_out",
        "redirect": "success",
    }


def test_missing_values_are_read_as_empty(web: Web, tmp_path: Path) -> None:
    rows = [
        {"key": "a" * 24, "url": None, "caption": "no link", "entities": []},
        {"key": "b" * 24, "url": f"http://{HOST}/image", "caption": None, "entities": None},
    ]
    (tmp_path / "00000").mkdir()
    counts = DownloadShard(config_for(web))(pa.Table.from_pylist(rows, schema=CORPUS), tmp_path / "00000")
    assert (counts["status/bad_url"], counts["status/success"]) == (1, 1)


def test_a_link_that_the_corpus_repeats_is_fetched_once(web: Web, tmp_path: Path) -> None:
    (tmp_path / "corpus" / "kept").mkdir(parents=True)
    for i, table in enumerate((table_of(images(2)), table_of(images(1)))):
        pq.write_table(table, tmp_path / "corpus" / "kept" / f"{i}.parquet")
    assert download_corpus(config_for(web), tmp_path / "corpus", tmp_path / "shards")["links"] == 2
    assert len(statuses(tmp_path / "shards")) == 2


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "no parquet files"),
        ([CORPUS.empty_table()], "no links"),
        ([pa.table({"key": ["a"], "caption": ["b"]})], "column 'url' is missing"),
    ],
)
def test_a_bad_corpus_is_one_line(web: Web, tmp_path: Path, tables: list[pa.Table], message: str) -> None:
    (tmp_path / "corpus" / "kept").mkdir(parents=True)
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / "corpus" / "kept" / f"{i}.parquet")
    with pytest.raises(InputError, match=message) as error:
        download_corpus(config_for(web), tmp_path / "corpus", tmp_path / "shards")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "corpus" / "kept") in str(error.value)
