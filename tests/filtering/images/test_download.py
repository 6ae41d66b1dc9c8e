"""Links to shards against a real server: what is written, and that the bytes are always the same."""

import hashlib
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from filtering import InputError
from filtering.images.download import DownloadConfig, DownloadShard, download_corpus
from filtering.images.fetch_config import FetchConfig
from filtering.images.from_tars import in_tars
from filtering.schema import CORPUS, STATUS, key_of
from helpers.download_web import HOST, Web, picture
from helpers.downloads import config_for, contents, images, statuses, table_of, write_corpus
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


def test_every_link_gets_a_row_and_every_image_a_sample(web: Web, tmp_path: Path) -> None:
    urls = [*images(12), f"http://{HOST}/heal?times=1&seed=77", *(f"http://{HOST}{path}" for path in FAULTS)]
    corpus, out = write_corpus(tmp_path / "corpus", urls), tmp_path / "shards"
    report = download_corpus(config_for(web), corpus, out)

    rows = statuses(out)
    assert pq.read_schema(out / "00000.parquet").equals(STATUS)
    assert sorted(row["key"] for row in rows) == sorted(key_of(url, f"a cat at {url}") for url in urls)
    for path in out.glob("[0-9]*.parquet"):
        assert (keys := pq.read_table(path)["key"].to_pylist()) == sorted(keys)
    by_url = {str(row["url"]).removeprefix(f"http://{HOST}"): row for row in rows}
    assert {path: by_url[path]["status"] for path in FAULTS} == FAULTS
    assert {path for path, row in by_url.items() if row["retryable"]} == {"/drip", "/status/503"}
    assert by_url["/heal?times=1&seed=77"]["attempts"] == 2
    assert (by_url["/huge"]["original_width"], by_url["/huge"]["width"]) == (10_000, None)
    assert by_url["/truncated"]["sha256"] == hashlib.sha256(picture()[:-200]).hexdigest()

    assert {name: report[name] for name in ("links", "asked", "success", "retryable", "shards")} == {
        "links": 24,
        "asked": 24,
        "success": 13,
        "retryable": 2,
        "shards": 4,
    }
    assert report["by_failure"] == {"permanent": 4, "transient": 2, "policy": 5}
    assert {row["failure"] for row in rows} == {None, "permanent", "transient", "policy"}
    assert report["by_status"] == {"success": 13, **dict.fromkeys(FAULTS.values(), 1)}
    assert report["bytes"] == sum(row["bytes"] for row in rows)  # type: ignore[misc]
    sizes = json.loads((out / "sizes.json").read_text())
    assert list(sizes) == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    assert sum(sizes.values()) == 13
    all_stats = [json.loads(path.read_text()) for path in sorted(out.glob("*_stats.json"))]
    assert sum(stats["count"] for stats in all_stats) == 24
    for stats in all_stats:
        assert stats["count"] == stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"]
        assert sum(stats["status_dict"].values()) == stats["count"]


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
        own = {"status", "error_message", "sha256", "phash", "width", "height", "original_width", "original_height"}
        assert set(sample) == {*CORPUS.names, *own}
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
    assert len(contents(tmp_path / "one", ".tar")) == 4
    assert one == two


def test_the_digest_does_not_depend_on_how_often_a_server_had_to_be_asked(web: Web, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [*images(3), f"http://{HOST}/heal?times=1"])
    first = download_corpus(config_for(web), corpus, tmp_path / "one")
    second = download_corpus(config_for(web), corpus, tmp_path / "two")
    attempts = [sorted(row["attempts"] for row in statuses(tmp_path / out)) for out in ("one", "two")]  # type: ignore[type-var]
    assert attempts == [[1, 1, 1, 2], [1, 1, 1, 1]]
    assert first["digest"] == second["digest"]
    assert contents(tmp_path / "one", ".tar") == contents(tmp_path / "two", ".tar")


def test_a_shard_without_any_image_is_an_empty_tar(web: Web, tmp_path: Path) -> None:
    urls = [f"http://{HOST}/status/404?{i}" for i in range(15)] + [f"http://{HOST}/image"]
    out = tmp_path / "shards"
    download_corpus(config_for(web), write_corpus(tmp_path / "corpus", urls), out)
    sizes = json.loads((out / "sizes.json").read_text())
    assert sorted(sizes.values()) == [0, 1]
    assert len(list(wds.WebDataset(sorted(map(str, out.glob("*.tar"))), shardshuffle=False))) == 1


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
    counts = DownloadShard(config_for(web), tmp_path)(pa.Table.from_pylist(rows, schema=CORPUS), tmp_path / "00000")
    assert (counts["status/bad_url"], counts["status/success"]) == (1, 1)


def test_a_link_that_the_corpus_repeats_is_fetched_once(web: Web, tmp_path: Path) -> None:
    (tmp_path / "corpus" / "kept").mkdir(parents=True)
    for i, table in enumerate((table_of(images(2)), table_of(images(1)))):
        pq.write_table(table, tmp_path / "corpus" / "kept" / f"{i}.parquet")
    assert download_corpus(config_for(web), tmp_path / "corpus", tmp_path / "shards")["links"] == 2
    assert len(statuses(tmp_path / "shards")) == 2


def test_a_corpus_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    kept = tmp_path / "corpus" / "kept"
    kept.mkdir(parents=True)
    (kept / "00000.parquet").write_bytes(b"PAR1 torn")
    for read in (in_tars, lambda corpus: download_corpus(DownloadConfig(), corpus, tmp_path / "shards")):
        with pytest.raises(InputError, match=r"/kept/00000.parquet: cannot be read \(.*\); delete \S*/corpus and run") as error:
            read(tmp_path / "corpus")
        assert "\n" not in str(error.value)


def strange_key(key: str | None) -> pa.Table:
    return pa.Table.from_pylist([{"key": key, "url": images(1)[0], "caption": "a cat", "entities": []}], schema=CORPUS)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "no parquet files"),
        ([CORPUS.empty_table()], "no links"),
        ([pa.table({"key": ["a"], "caption": ["b"]})], "column 'url' is missing"),
        (
            [table_of(images(3)), strange_key("../../../etc/cron.d/evil")],
            r"key '../../../etc/cron.d/evil' is not 24 hex digits",
        ),
        ([strange_key("A" * 24)], "is not 24 hex digits"),
        ([strange_key("a" * 23 + "\n")], "is not 24 hex digits"),
        ([strange_key(None)], "key None is not 24 hex digits"),
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
