"""A download goes on where it was: after a kill, for what failed, for links that are new, and with other settings."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from filtering import InputError
from filtering.images.download import DownloadConfig, DownloadShard, download_corpus
from filtering.images.image_config import ImageConfig
from helpers.download_web import HOST, Web
from helpers.downloads import by_path, config_for, contents, images, pages, statuses, table_of, write_corpus


def test_a_second_run_asks_only_for_what_may_pass(web: Web, tmp_path: Path) -> None:
    urls = [*images(12), *pages("/status/404", "/html", "/tiny", "/robots?tag=noai", "/status/503", "/heal?times=4&seed=99")]
    corpus, out = write_corpus(tmp_path / "corpus", urls), tmp_path / "shards"
    first = download_corpus(config_for(web, attempts=3), corpus, out)
    assert (first["asked"], first["success"], first["retryable"]) == (18, 12, 2)

    before = web.requests.copy()
    second = download_corpus(config_for(web, attempts=3, concurrency=2, timeout=9.0), corpus, out)
    assert web.requests - before == {"/status/503": 3, "/heal?times=4&seed=99": 2}
    assert (second["asked"], second["success"], second["retryable"]) == (2, 13, 1)
    assert second["digest"] != first["digest"]
    rows = by_path(out)
    assert (rows["/status/503"]["attempts"], rows["/heal?times=4&seed=99"]["attempts"]) == (6, 5)

    straight = download_corpus(config_for(web), corpus, tmp_path / "straight")
    assert straight["digest"] == second["digest"]
    assert contents(out, ".tar") == contents(tmp_path / "straight", ".tar")


def test_what_is_asked_again_is_a_choice(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", [*images(5), *pages("/status/404", "/status/503")]), tmp_path / "shards"
    config = config_for(web, attempts=1)
    first = download_corpus(config, corpus, out)
    before = web.requests.copy()
    assert download_corpus(config, corpus, out, retry="none") == {**first, "asked": 0}
    assert web.requests == before
    again = download_corpus(config, corpus, out, retry="permanent")
    assert web.requests - before == {"/status/404": 1, "/status/503": 1}
    assert again == {**first, "asked": 2}


def test_a_page_that_came_back_is_had_when_permanent_failures_are_asked_again(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", [*images(3), *pages("/back?after=1")]), tmp_path / "shards"
    assert download_corpus(config_for(web), corpus, out)["by_status"] == {"success": 3, "http_404": 1}
    assert download_corpus(config_for(web), corpus, out)["by_status"] == {"success": 3, "http_404": 1}
    assert download_corpus(config_for(web), corpus, out, retry="permanent")["by_status"] == {"success": 4}


@pytest.mark.parametrize("before", [6, 12, 60, 300])
def test_new_links_are_fetched_and_no_others(web: Web, tmp_path: Path, before: int) -> None:
    urls = images(60)
    corpus, out = tmp_path / "corpus", tmp_path / "shards"
    download_corpus(config_for(web), write_corpus(corpus, [*images(before), *pages("/status/404")]), out)
    asked = web.requests.copy()
    report = download_corpus(config_for(web), write_corpus(corpus, [*urls, *pages("/status/404")], files=3), out)
    assert sorted(web.requests - asked) == sorted(f"/image?seed={seed}" for seed in range(before, 60))
    assert report["asked"] == max(0, 60 - before)
    straight = download_corpus(config_for(web), corpus, tmp_path / "straight")
    assert {**report, "asked": 61} == straight
    assert contents(out) == contents(tmp_path / "straight")
    assert not (out / "_previous").exists()


def test_new_links_of_an_interrupted_download_lose_nothing(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(20)), tmp_path / "shards"
    config = config_for(web, shard_size=20)
    kill_when_asked(web, 8, config_for(web, shard_size=20, per_host=1), write_corpus(corpus, images(20, "&wait=0.1")), out)
    (journal,) = (out / "_work" / "00000").glob(".journal-*")
    finished = len(finished_links(journal.read_bytes()))
    before = web.requests.copy()
    report = download_corpus(config, write_corpus(corpus, images(90, "&wait=0.1")), out)
    assert report["shards"] == 8
    assert sum((web.requests - before).values()) == 90 - finished
    assert {row["status"] for row in statuses(out)} == {"success"}


def test_the_place_of_a_link_depends_on_its_key_alone(web: Web, tmp_path: Path) -> None:
    for name, count in (("few", 44), ("many", 78)):
        download_corpus(config_for(web), write_corpus(tmp_path / name, images(count)), tmp_path / f"{name}-shards")
    few, many = (
        {row["key"]: path.stem for path in sorted((tmp_path / f"{name}-shards").glob("*.parquet")) for row in rows_of(path)}
        for name in ("few", "many")
    )
    assert len(few) == 44
    assert few.items() <= many.items()


def rows_of(path: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]


def test_a_smaller_corpus_leaves_no_shard_of_the_larger_behind(web: Web, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "shards"
    download_corpus(config_for(web), write_corpus(corpus, images(30)), out)
    asked = web.requests.total()
    download_corpus(config_for(web), write_corpus(corpus, images(10)), out)
    assert list(contents(out)) == ["00000.index", "00000.parquet", "00000.tar", "00000_stats.json"]
    assert json.loads((out / "sizes.json").read_text()) == {"00000.tar": 10}
    assert web.requests.total() == asked


def test_other_image_settings_make_other_shards_but_ask_for_no_dead_link(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", [*images(3), *pages("/status/404", "/tiny")]), tmp_path / "shards"
    first = download_corpus(config_for(web), corpus, out)
    before = web.requests.copy()
    second = download_corpus(replace(config_for(web), image=ImageConfig(image_size=32)), corpus, out)
    assert first["digest"] != second["digest"]
    assert {row["height"] for row in statuses(out) if row["status"] == "success"} == {32}
    assert set(web.requests - before) == {f"/image?seed={seed}" for seed in range(3)} | {"/tiny"}


def test_looser_limits_ask_only_for_what_the_old_ones_refused(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", [*images(3), *pages("/status/404", "/loop/4")]), tmp_path / "shards"
    first = download_corpus(config_for(web, max_redirects=2), corpus, out)
    assert first["by_status"] == {"success": 3, "http_404": 1, "too_many_redirects": 1}
    before = web.requests.copy()
    second = download_corpus(config_for(web, max_redirects=5), corpus, out)
    assert second["by_status"] == {"success": 4, "http_404": 1}
    assert set(web.requests - before) == {f"/loop/{left}" for left in range(5)}


@pytest.mark.parametrize("damage", ["tar gone", "tar cut", "statuses gone", "statuses cut", "statuses torn"])
def test_a_damaged_shard_is_mended(web: Web, tmp_path: Path, damage: str) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(8)), tmp_path / "shards"
    download_corpus(config_for(web), corpus, out)
    whole = contents(out)
    file = out / ("00000.tar" if damage.startswith("tar") else "00000.parquet")
    if damage.endswith("gone"):
        file.unlink()
    elif damage.endswith("torn"):  # as a power cut may leave it: its length is right, its content is not
        file.write_bytes(bytes(file.stat().st_size - 1000) + file.read_bytes()[-1000:])
        (out / "_done" / "00000.done.json").unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        (out / "_done" / "00000.done.json").unlink()
    before = web.requests.total()
    download_corpus(config_for(web), corpus, out)
    assert contents(out) == whole
    asked = web.requests.total() - before
    assert 0 < asked < 8 if damage == "tar cut" else asked == 8


IMPORTS = """
import os, sys
from pathlib import Path
from filtering.images.download import *
from filtering.images.fetch_config import FetchConfig
from filtering.images.image_config import ImageConfig
"""


def kill_when_asked(web: Web, requests: int, config: DownloadConfig, corpus: Path, out: Path) -> None:
    """Kill a download -9 when the server has seen so many requests more."""
    code = f"{IMPORTS}download_corpus({config!r}, Path(sys.argv[1]), Path(sys.argv[2]))"
    before = web.requests.total()
    process = subprocess.Popen([sys.executable, "-c", code, str(corpus), str(out)])
    try:
        while process.poll() is None and web.requests.total() - before < requests:
            time.sleep(0.005)
        assert process.poll() is None, "the victim ended by itself"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def kill_before_move(number: int, to: str, config: DownloadConfig, corpus: Path, out: Path) -> None:
    """Run a download that is killed -9 right before the `number`th time that it moves a file to a path that ends in `to`."""
    code = (
        f"{IMPORTS}"
        "replace, moves = os.replace, []\n"
        "def move(source, target):\n"
        f"    moves.extend([target] if str(target).endswith({to!r}) or {to!r} in Path(target).parent.parts else [])\n"
        f"    os.kill(os.getpid(), 9) if len(moves) == {number} else replace(source, target)\n"
        "os.replace = move\n"
        f"download_corpus({config!r}, Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(corpus), str(out)], check=False)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [2, 3])
def test_a_kill_while_shards_are_put_aside_loses_no_image(web: Web, tmp_path: Path, number: int) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(8)), tmp_path / "shards"
    download_corpus(config_for(web), corpus, out)
    whole = contents(out)
    kill_before_move(number, "_previous", config_for(web, shard_size=2), corpus, out)
    assert download_corpus(config_for(web), corpus, out)["asked"] == 0
    assert contents(out) == whole
    assert web.requests.total() == 8


def test_a_kill_never_brings_statuses_and_images_of_different_settings_together(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(8)), tmp_path / "shards"
    large, small = (replace(config_for(web, shard_size=5), image=ImageConfig(image_size=size)) for size in (48, 32))
    download_corpus(replace(large, shard_size=10), corpus, out)
    whole = download_corpus(large, corpus, tmp_path / "straight")
    kill_before_move(1, "sizes.json", small, corpus, out)  # all shards are there, and still the old ones put aside
    kill_before_move(1, "shards/00000.tar", large, corpus, out)
    assert download_corpus(large, corpus, out)["digest"] == whole["digest"]


def test_shards_put_aside_twice_do_not_mix(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(8)), tmp_path / "shards"
    large, small = (replace(config_for(web, shard_size=5), image=ImageConfig(image_size=size)) for size in (48, 32))
    one = replace(small, shard_size=10)
    whole = download_corpus(one, corpus, tmp_path / "straight")
    download_corpus(large, corpus, out)
    kill_before_move(1, "sizes.json", one, corpus, out)
    kill_before_move(1, "shards/00000.tar", small, corpus, out)
    assert download_corpus(one, corpus, out)["digest"] == whole["digest"]


def test_what_a_kill_left_of_a_complete_shard_is_tidied_away(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(3)), tmp_path / "shards"
    download_corpus(config_for(web), corpus, out)
    left = out / "_work" / "00000"  # by a kill between the marker and the end
    left.mkdir()
    (left / ".journal-0").write_bytes(b"all the images once more")
    assert download_corpus(config_for(web), corpus, out)["asked"] == 0
    assert not list((out / "_work").iterdir())


def test_a_killed_shard_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    urls = [*images(40, "&wait=0.05"), f"http://{HOST}/status/404"]
    config = config_for(web, per_host=2, shard_size=100)
    corpus, out = write_corpus(tmp_path / "corpus", urls), tmp_path / "killed"
    kill_when_asked(web, 12, config, corpus, out)
    (journal,) = (out / "_work" / "00000").glob(".journal-*")
    finished = finished_links(journal.read_bytes())
    in_flight = config.fetch.per_host  # a link counts as in flight until its record is written
    assert web.requests.total() - in_flight <= len(finished) < len(urls)
    with journal.open("ab") as file:
        file.write(b'["torn", 5000, {"status": "success"}]\n half a picture')

    before = web.requests.copy()
    report = download_corpus(config, corpus, out)
    again = web.requests - before
    for path, row in by_path(out).items():
        assert (again[path] == 0) == (row["url"] in finished)
    undisturbed = download_corpus(config, corpus, tmp_path / "undisturbed")
    assert {**report, "asked": 41} == undisturbed
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not (out / "_work" / "00000").exists()


def finished_links(journal: bytes) -> set[str]:
    """The links of the whole records, read independently of the code under test."""
    keys, at = set(), 0
    while (end := journal.find(b"\n", at)) >= 0:
        key, length, _ = json.loads(journal[at:end])
        if end + 1 + length > len(journal):
            break
        keys.add(key)
        at = end + 1 + length
    return keys


def test_a_kill_while_failures_are_asked_again_loses_no_image(web: Web, tmp_path: Path) -> None:
    urls = [*images(8), *(f"http://{HOST}/heal?times=1&seed={seed}&wait=0.1" for seed in range(100, 108))]
    config = config_for(web, attempts=1, per_host=1, shard_size=100)
    corpus, out = write_corpus(tmp_path / "corpus", urls), tmp_path / "shards"
    assert download_corpus(config, corpus, out)["success"] == 8
    whole = contents(out, ".tar")
    kill_when_asked(web, 4, config, corpus, out)
    assert contents(out, ".tar") == whole  # until the shard is complete again
    before = web.requests.copy()
    assert download_corpus(config, corpus, out)["success"] == 16
    assert not {path for path in web.requests - before if path.startswith("/image")}
    with tarfile.open(out / "00000.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names)) == 3 * 16


def test_what_may_pass_is_asked_again_by_an_interrupted_shard(web: Web, tmp_path: Path) -> None:
    urls = pages("/status/404", "/heal?times=3&seed=1", "/image")
    shard = DownloadShard(config_for(web, attempts=3), tmp_path)
    (tmp_path / "00000").mkdir()
    first = shard(table_of(urls), tmp_path / "00000")
    assert (first["status/success"], first["status/http_500"], first["asked"]) == (1, 1, 3)
    second = shard(table_of(urls), tmp_path / "00000")
    assert (second["status/success"], second["status/http_404"], second["asked"]) == (2, 1, 1)
    assert web.requests == {"/status/404": 1, "/heal?times=3&seed=1": 4, "/image": 1}
    (healed,) = (row for row in rows_of(tmp_path / "00000" / "00000.parquet") if "heal" in str(row["url"]))
    assert healed["attempts"] == 4


def test_a_dead_network_is_no_result(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", images(12)), tmp_path / "shards"
    with pytest.raises(
        InputError,
        match=r"^nothing could be fetched: 12 of 12 links failed with 'dns\w*', such as http://photos.test/im\S+ \(.*\)$",
    ):
        download_corpus(config_for(web, connect_to={}, attempts=1), corpus, out)
    assert not (out / "sizes.json").exists()
    assert download_corpus(config_for(web), corpus, out)["success"] == 12
    assert web.requests.total() == 12


def test_a_dead_site_is_remembered(web: Web, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", pages(*(f"/status/404?{i}" for i in range(12)))), tmp_path / "shards"
    for _ in range(2):
        with pytest.raises(
            InputError,
            match=r"^nothing could be fetched: 12 of 12 links failed with 'http_404', such as http://photos.test/status/404\?",
        ):
            download_corpus(config_for(web), corpus, out)
    assert web.requests.total() == 12
    assert {row["failure"] for row in statuses(out)} == {"permanent"}


def test_complete_shards_are_copied_to_a_target(web: Web, tmp_path: Path) -> None:
    corpus, out, target = tmp_path / "corpus", tmp_path / "shards", tmp_path / "far away"
    config = config_for(web)
    download_corpus(config, write_corpus(corpus, images(24)), out)
    download_corpus(replace(config, target=f"file://{target}"), corpus, out)
    assert contents(target) == contents(out)
    assert (target / "sizes.json").read_bytes() == (out / "sizes.json").read_bytes()
    download_corpus(replace(config, target=str(target)), write_corpus(corpus, images(5)), out)
    assert contents(target) == contents(out)
    assert len(contents(target, ".tar")) == 1


def test_a_target_that_cannot_be_written_is_told_before_anything_is_asked(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = replace(config_for(web), target=f"file://{tmp_path / 'file' / 'shards'}")
    with pytest.raises(InputError, match=r"^download.target: [^\n]*$"):
        download_corpus(config, write_corpus(tmp_path / "corpus", images(2)), tmp_path / "shards")
    assert not web.requests
