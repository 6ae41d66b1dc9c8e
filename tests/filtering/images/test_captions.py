"""Several captions of one image: fetched once, stored once with all of them, and never fetched again for a caption's sake."""

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError
from filtering.files import digest_of_file, write_table
from filtering.images.download import DownloadShard, download_corpus, validity_of
from filtering.images.journal import Journal
from filtering.images.layout import cut_corpus
from filtering.schema import CORPUS, RESULT, key_of
from helpers.download_web import Web
from helpers.downloads import config_for, contents, images, pages, statuses, write_corpus


def rows_of(urls: list[str], captions: int, **extra: list[Any]) -> pa.Table:
    """So many captions of each URL, in an order of their own."""
    rows = [
        {
            "key": key_of(url, text := f"a cat, told {at} of {url}"),
            "url": url,
            "caption": text,
            "entities": ["cat", f"thing {at}"],
        }
        for at in range(captions)
        for url in urls
    ]
    table = pa.Table.from_pylist(rows, schema=CORPUS)
    for name, values in extra.items():
        table = table.append_column(name, pa.array(values))
    return table


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """The files of every sample, by key and kind."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, kind = member.name.partition(".")
                found.setdefault(key, {})[kind] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_an_image_with_five_captions_is_fetched_and_stored_once(web: Web, tmp_path: Path) -> None:
    table, out = rows_of(images(20), 5), tmp_path / "shards"
    report = download_corpus(config_for(web, shard_size=40), write_corpus(tmp_path / "corpus", table, files=3), out)
    assert web.requests == dict.fromkeys([f"/image?seed={seed}" for seed in range(20)], 1)
    counts = {name: report[name] for name in ("links", "captions", "repeated", "success", "asked", "shards")}
    assert counts == {"links": 20, "captions": 100, "repeated": 0, "success": 20, "asked": 20, "shards": 4}
    assert sum(json.loads((out / "sizes.json").read_text()).values()) == 20

    found, by_url = samples(out), {row["url"]: row for row in statuses(out)}
    assert len(found) == len(by_url) == 20
    for url in images(20):
        rows = sorted((row for row in table.to_pylist() if row["url"] == url), key=lambda row: row["key"])
        sample, first = found[rows[0]["key"]], rows[0]
        told = json.loads(sample["json"])
        assert sample["txt"].decode() == told["caption"] == told["captions"][0] == first["caption"]
        assert told["entities"] == told["caption_entities"][0] == first["entities"]
        assert told["captions"] == by_url[url]["captions"] == [row["caption"] for row in rows]
        assert told["caption_entities"] == by_url[url]["caption_entities"] == [row["entities"] for row in rows]
        assert by_url[url]["caption_keys"] == [row["key"] for row in rows]
    # Every row of the corpus is in the tables, once.
    keys = Counter(key for row in by_url.values() for key in row["caption_keys"])
    assert keys == Counter(table["key"].to_pylist())


def test_an_image_with_one_caption_is_stored_as_ever(web: Web, tmp_path: Path) -> None:
    table = pa.concat_tables([rows_of(images(2)[:1], 2), rows_of(images(2)[1:], 1)])
    download_corpus(config_for(web), write_corpus(tmp_path / "corpus", table), tmp_path / "shards")
    alone = next(row for row in statuses(tmp_path / "shards") if row["url"] == images(2)[1])
    assert [alone[name] for name in ("captions", "caption_entities", "caption_keys")] == [None] * 3
    told = json.loads(samples(tmp_path / "shards")[alone["key"]]["json"])
    assert list(told) == [
        *("key", "url", "caption", "entities", "status", "error_message", "sha256", "phash"),
        *("width", "height", "original_width", "original_height"),
    ]


def test_spaces_around_a_link_make_no_other_link_and_rows_without_one_are_rows_each(web: Web, tmp_path: Path) -> None:
    urls = [images(1)[0], f" {images(1)[0]} ", "", ""]
    rows = [{"key": f"{at:024x}", "url": url, "caption": f"cat {at}", "entities": []} for at, url in enumerate(urls)]
    rows.append({"key": "f" * 24, "url": None, "caption": "no link", "entities": None})
    corpus = write_corpus(tmp_path / "corpus", pa.Table.from_pylist(rows, schema=CORPUS))
    report = download_corpus(config_for(web), corpus, tmp_path / "shards")
    assert report["by_status"] == {"success": 1, "bad_url": 3}
    assert (report["links"], report["captions"], web.requests.total()) == (4, 5, 1)


def test_lost_images_account_for_all_their_captions(web: Web, tmp_path: Path) -> None:
    table = rows_of([*images(2), *pages("/status/404", "/tiny", "/html")], 3)
    repeated = pa.concat_tables([table, table.slice(0, 4)])  # a filter without rules keeps a row that is repeated
    write_corpus(tmp_path / "corpus", repeated, files=1)
    report = download_corpus(config_for(web), tmp_path / "corpus", tmp_path / "shards")
    assert report["by_status"] == {"success": 2, "http_404": 1, "too_small": 1, "not_an_image": 1}
    assert (report["links"], report["captions"], report["repeated"]) == (5, 15, 4)
    assert report["captions"] + report["repeated"] == len(repeated)
    assert sum(len(row["captions"]) for row in statuses(tmp_path / "shards")) == 15


@pytest.mark.parametrize("change", ["one more", "first one gone", "all others", "one each"])
def test_captions_that_come_and_go_fetch_nothing_again(web: Web, tmp_path: Path, change: str) -> None:
    corpus, out, urls = tmp_path / "corpus", tmp_path / "shards", [*images(9), *pages("/status/404")]
    download_corpus(config_for(web, shard_size=100), write_corpus(corpus, rows_of(urls, 3)), out)
    assert web.requests.total() == 10
    table = rows_of(urls, 4)
    if change == "first one gone":
        first = {row["url"]: row["key"] for row in rows_of(urls, 3).sort_by("key").to_pylist()[::-1]}
        table = rows_of(urls, 3).filter(pa.array([key not in first.values() for key in rows_of(urls, 3)["key"].to_pylist()]))
    elif change == "all others":
        table = rows_of(urls, 6).slice(3 * len(urls))
    elif change == "one each":
        table = rows_of(urls, 1)
    report = download_corpus(config_for(web, shard_size=100), write_corpus(corpus, table), out)
    assert (report["asked"], report["success"], report["captions"]) == (0, 9, len(table))
    assert web.requests.total() == 10
    straight = download_corpus(config_for(web, shard_size=100), corpus, tmp_path / "straight")
    assert report == {**straight, "asked": 0}
    assert contents(out) == contents(tmp_path / "straight")


# ---- columns that are carried along


def test_kept_columns_go_into_the_table_and_the_samples(web: Web, tmp_path: Path) -> None:
    urls = images(4)
    table = rows_of(
        urls, 2, similarity=[0.25, None, float("nan"), 0.5] * 2, n=[1, 2, None, 4] * 2, LICENSE=["by", "?", None, "by"] * 2
    ).append_column("safe", pa.array([True, None, False, True] * 2))
    out = tmp_path / "shards"
    download_corpus(config_for(web), write_corpus(tmp_path / "corpus", table), out)
    types = {"similarity": pa.float64(), "n": pa.int64(), "LICENSE": pa.string(), "safe": pa.bool_()}
    schema = pq.read_schema(next(out.glob("*.parquet")))
    assert {name: schema.field(name).type for name in schema.names[-4:]} == types
    told = {url: json.loads(samples(out)[row["key"]]["json"]) for row in statuses(out) for url in [row["url"]]}
    values = [[told[url][name] for name in types] for url in urls]
    assert values == [[0.25, 1, "by", True], [None, 2, "?", None], [None, None, None, False], [0.5, 4, "by", True]]
    row = next(row for row in statuses(out) if row["url"] == urls[0])
    assert [row[name] for name in types] == [0.25, 1, "by", True]


def test_of_several_captions_the_first_row_gives_the_value(web: Web, tmp_path: Path) -> None:
    table = rows_of(images(1), 4, score=[10, 11, 12, 13])
    download_corpus(config_for(web), write_corpus(tmp_path / "corpus", table), tmp_path / "shards")
    first = min(table.to_pylist(), key=lambda row: row["key"])
    ((key, files),) = samples(tmp_path / "shards").items()
    assert (key, json.loads(files["json"])["score"]) == (first["key"], first["score"])


def test_a_column_that_one_file_lacks_is_null_there_and_types_are_those_of_the_others(web: Web, tmp_path: Path) -> None:
    kept = tmp_path / "corpus" / "kept"
    write_table(kept / "0.parquet", rows_of(images(1), 1, score=[7]))
    write_table(kept / "1.parquet", rows_of(images(2)[1:], 1))
    write_table(kept / "2.parquet", rows_of(images(3)[2:], 1).append_column("score", pa.nulls(1)))
    download_corpus(config_for(web), tmp_path / "corpus", tmp_path / "shards")
    assert {row["url"][-1]: row["score"] for row in statuses(tmp_path / "shards")} == {"0": 7, "1": None, "2": None}


@pytest.mark.parametrize("name", ["status", "width", "captions", "sha256"])
def test_a_column_named_like_one_of_the_downloads_own_is_one_line(web: Web, tmp_path: Path, name: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", rows_of(images(1), 1).append_column(name, pa.array(["mine"])))
    with pytest.raises(InputError, match=f"column '{name}' has the name of a column of the download's own; rename it$"):
        download_corpus(config_for(web), corpus, tmp_path / "shards")


# ---- folders of versions that cut shards by key


def as_older_versions_had_it(web: Web, out: Path, table: pa.Table, shards: int) -> None:
    """The shards of a download that knew no captions: a row, a sample and a request for each caption, cut by keys."""
    config = config_for(web, shard_size=1000)
    lone = out.with_name("lone")
    heads = [int(key[:8], 16) * shards >> 32 for key in table["key"].to_pylist()]
    for shard in range(shards):
        rows = table.filter(pa.array([head == shard for head in heads]))
        whole = DownloadShard(config, lone)
        found: dict[str, Any] = {}
        for at in range(len(rows)):  # each row by itself
            scratch = lone / f"{at:05d}"
            scratch.mkdir(parents=True)
            whole(rows.slice(at, 1), scratch)
            found |= samples(scratch)
        tables = [pq.read_table(path) for path in sorted(lone.glob("*/*.parquet"))]
        joined = pa.concat_tables(tables).sort_by("key").select([*CORPUS.names, *RESULT.names])
        write_table(out / f"{shard:05d}.parquet", joined)
        with tarfile.open(out / f"{shard:05d}.tar", "w") as tar:
            for key, files in sorted(found.items()):
                for kind, content in files.items():
                    path = lone / f"{key}.{kind}"
                    path.write_bytes(content)
                    tar.add(path, path.name)
        shutil.rmtree(lone)
    (out / "_layout.json").write_text(json.dumps({"shards": shards}))
    (out / "_done").mkdir()


@pytest.mark.parametrize("size", [8, 32, 100])
def test_shards_that_were_cut_by_keys_give_their_images(web: Web, tmp_path: Path, size: int) -> None:
    table, out = rows_of([*images(6), *pages("/status/404")], 3), tmp_path / "shards"
    as_older_versions_had_it(web, out, table, 2)
    asked = web.requests.total()
    assert asked == 21
    corpus = write_corpus(tmp_path / "corpus", table)
    report = download_corpus(config_for(web, shard_size=size), corpus, out)
    assert (report["asked"], report["links"], report["success"], web.requests.total()) == (0, 7, 6, asked)
    straight = download_corpus(config_for(web, shard_size=size), corpus, tmp_path / "straight")
    assert report["digest"] == straight["digest"]
    assert contents(out, ".tar") == contents(tmp_path / "straight", ".tar")
    assert not (out / "_previous").exists()
    assert json.loads((out / "_layout.json").read_text()) == {"shards": report["shards"], "by": "url"}


def test_the_way_from_keys_to_links_may_be_killed_anywhere(web: Web, tmp_path: Path) -> None:
    table, out = rows_of(images(6), 2), tmp_path / "shards"
    as_older_versions_had_it(web, out, table, 2)
    asked, corpus = web.requests.total(), write_corpus(tmp_path / "corpus", table)
    cut_corpus(corpus, out, 5)  # killed after the cut; then other settings, and killed again
    cut_corpus(corpus, out, 2)
    (tmp_path / "shards" / "_previous" / "00000-00002" / ".sorting").mkdir()
    report = download_corpus(config_for(web, shard_size=3), corpus, out)
    assert (report["asked"], report["success"], web.requests.total()) == (0, 6, asked)


def test_the_journal_of_an_older_version_is_read(web: Web, tmp_path: Path) -> None:
    table, out = rows_of(images(3), 2), tmp_path / "shards"
    config = config_for(web, shard_size=100)
    download_corpus(config, write_corpus(tmp_path / "corpus", table), out)
    whole = {name: digest_of_file(out / name) for name in ("00000.tar", "sizes.json")}
    rows = {row["url"]: row for row in statuses(out)}
    found = samples(out)
    shutil.rmtree(out / "_done")
    for path in out.glob("00000*"):
        path.unlink()
    (out / "_layout.json").write_text(json.dumps({"shards": 1}))
    name = validity_of(config).journal
    (out / "_work" / "00000").mkdir(parents=True)
    with Journal(out / "_work" / "00000" / name) as journal:
        for row in table.sort_by("key").to_pylist()[::-1]:  # the key of one caption of each image, not that of the first
            told = rows[row["url"]]
            if row["key"] != told["key"]:
                journal.append(
                    row["key"], {"extension": "jpg", **{name: told[name] for name in RESULT.names}}, found[told["key"]]["jpg"]
                )
    asked = web.requests.total()
    assert download_corpus(config, tmp_path / "corpus", out)["asked"] == 0
    assert web.requests.total() == asked
    assert {name: digest_of_file(out / name) for name in whole} == whole
