"""Kept samples out of ready tars: the shards are those that a download would write, and no caption gets a foreign image."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from filtering import InputError
from filtering.captions.corpus import FilterConfig, build_corpus
from filtering.captions.reader import SourceConfig, read_links
from filtering.files import digest_of_file
from filtering.images import from_tars as select
from filtering.images.download import DownloadConfig, download_corpus
from filtering.images.fetch_config import FetchConfig
from filtering.images.from_tars import in_tars, select_corpus
from filtering.images.image_config import ImageConfig
from filtering.schema import CORPUS, SAMPLE, STATUS, key_of
from filtering.shards import MakeWork, Marker, run_local
from helpers.chain import run_well, summary
from helpers.download_web import HOST, Web, picture
from helpers.downloads import write_corpus

CONFIG = DownloadConfig(image=ImageConfig(image_size=48))


def sample(name: str, image: bytes | None = None, url: str = "", caption: str = "a cat") -> list[tuple[str, bytes]]:
    files = [(f"{name}.jpg", image)] if image is not None else []
    return [*files, (f"{name}.json", json.dumps({"url": url}).encode()), (f"{name}.txt", caption.encode())]


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def write_tars(folder: Path, tars: int = 3, samples: int = 6) -> Path:
    for i in range(tars):
        files = [
            file for j in range(samples) for file in sample(f"{i}{j:03d}", picture(10 * i + j), caption=f"a cat in box {i}{j}")
        ]
        write_tar(folder / f"train-{i}.tar", files)
    return folder


def corpus_of(folder: Path, source: Path, *, files: int = 1, every: int = 1) -> Path:
    """Every so many of the samples in the folder `source` as a corpus of so many files."""
    rows = [row for table in read_links(SourceConfig(path=str(source), format="webdataset")) for row in table.to_pylist()]
    kept = [{**row, "entities": ["cat"]} for row in rows if row["caption"]][::every]
    return write_corpus(folder, pa.Table.from_pylist(kept, schema=pa.schema([*CORPUS, SAMPLE])), files)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: digest_of_file(path) for path in sorted([*folder.glob("[0-9]*"), folder / "sizes.json"])}


def statuses(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("[0-9]*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_selected_shard_is_the_shard_that_a_download_writes(tmp_path: Path) -> None:
    urls = [f"http://{HOST}/image?seed={seed}" for seed in range(7)]
    files = [
        file for seed, url in enumerate(urls) for file in sample(f"{seed:09d}", picture(seed), url, f"a cat, number {seed}")
    ]
    write_tar(tmp_path / "in" / "train-0000.tar", files)
    corpus = corpus_of(tmp_path / "corpus", tmp_path / "in", files=2)
    selected = select_corpus(CONFIG, corpus, tmp_path / "selected")
    with Web() as web:
        config = replace(CONFIG, fetch=FetchConfig(connect_to=web.connect_to))
        downloaded = download_corpus(config, corpus, tmp_path / "downloaded")
    for name in ("00000.tar", "00000_stats.json", "sizes.json"):
        assert (tmp_path / "selected" / name).read_bytes() == (tmp_path / "downloaded" / name).read_bytes()
    assert selected == downloaded
    assert pq.read_schema(tmp_path / "selected" / "00000.parquet").equals(STATUS)
    asked = {"http_status": None, "attempts": 0}
    assert statuses(tmp_path / "selected") == [{**row, **asked} for row in statuses(tmp_path / "downloaded")]


def test_from_tars_to_shards_by_way_of_the_filter(tmp_path: Path) -> None:
    captions = [f"a {animal} sits on the {place}" for animal in ("cat", "dog") for place in ("table", "beach", "street")]
    for i, name in enumerate(("train-0", "train-1")):
        files = [
            file for j, text in enumerate(captions) for file in sample(f"../../{j}::{i}", picture(j), caption=f"{text} {i}")
        ]
        write_tar(tmp_path / "in" / f"{name}.tar", [*files, *sample("no-image"), *sample("short", picture(9), caption="ok")])
    source = SourceConfig(path=str(tmp_path / "in"))
    result = build_corpus(FilterConfig(source=source, min_count=1, shards=2), tmp_path / "corpus")
    assert (result["links"], result["kept"], result["dropped"]) == (16, 12, {"no_image": 2, "too_short": 2})
    report = select_corpus(CONFIG, tmp_path / "corpus", tmp_path / "out")
    assert (report["success"], report["shards"]) == (12, 2)
    rows = statuses(tmp_path / "out")
    assert sorted(row["caption"] for row in rows) == sorted(f"{text} {i}" for text in captions for i in (0, 1))
    assert all({"cat", "dog"} & set(row["entities"]) for row in rows)
    for row in rows:
        number = captions.index(row["caption"][:-2])
        assert row["sha256"] == hashlib.sha256(picture(number)).hexdigest()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "corpus", "out"}


@pytest.mark.slow
def test_the_download_verb_takes_the_images_out_of_tars(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    output = run_well("download", tmp_path / "run", f"filter.source.path={tmp_path / 'in'}")
    assert "shards: 18 of 18 images obtained; failed: none" in output
    assert summary(tmp_path / "run")["stages"]["download"]["by_status"] == {"success": 18}
    assert {row["attempts"] for row in statuses(tmp_path / "run" / "shards")} == {0}


def test_each_tar_becomes_a_shard_of_its_kept_samples(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "in")
    corpus, out = corpus_of(tmp_path / "corpus", source, every=2, files=3), tmp_path / "out"
    report = select_corpus(CONFIG, corpus, out)
    assert [report[name] for name in ("links", "success", "retryable", "shards")] == [9, 9, 0, 3]
    assert report["by_status"] == {"success": 9}
    assert json.loads((out / "sizes.json").read_text()) == {"00000.tar": 3, "00001.tar": 3, "00002.tar": 3}
    for i in range(3):
        samples = list(wds.WebDataset(str(out / f"{i:05d}.tar"), shardshuffle=False, empty_check=False))
        captions = sorted(sample["txt"].decode() for sample in samples if "txt" in sample)
        assert captions == [f"a cat in box {i}{j}" for j in (0, 2, 4)]
    assert sorted(path.name for path in out.iterdir() if not path.name[0].isdigit()) == [
        "_done",
        "_links",
        "_work",
        "sizes.json",
    ]


def test_neither_files_nor_groups_nor_the_order_of_work_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_backwards(
        make_work: MakeWork, sources: Sequence[Path], out: Path, *, fingerprint: str, label: str, **_: object
    ) -> list[Marker]:
        for source in sources[::-1]:
            run_local(make_work, [source], out, fingerprint=fingerprint, label=label)
        return run_local(make_work, sources, out, fingerprint=fingerprint, label=label)

    source = write_tars(tmp_path / "in", tars=5, samples=4)
    one = select_corpus(CONFIG, corpus_of(tmp_path / "a", source), tmp_path / "one")
    for rows in (1, 3, 7):
        monkeypatch.setattr(select, "GROUP_ROWS", rows)
        corpus = corpus_of(tmp_path / f"b{rows}", source, files=rows)
        assert select_corpus(CONFIG, corpus, tmp_path / f"two{rows}", run=run_backwards) == one
        assert contents(tmp_path / "one") == contents(tmp_path / f"two{rows}")


def test_finished_shards_are_not_done_again(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "in")
    corpus, out = corpus_of(tmp_path / "corpus", source), tmp_path / "out"
    whole = (source / "train-1.tar").read_bytes()
    (source / "train-1.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"train-1.tar is damaged or cut short"):
        select_corpus(CONFIG, corpus, out)
    assert not (out / "sizes.json").exists()
    (journal,) = (out / "_work" / "00001").glob(".journal-*")
    assert journal.stat().st_size > 0  # what was read before the cut is not read again
    (source / "train-0.tar").rename(tmp_path / "away.tar")
    (source / "train-1.tar").write_bytes(whole)
    report = select_corpus(CONFIG, corpus, out)
    assert contents(out).keys() >= {"00000.tar", "00001.tar", "00002.tar"}
    (tmp_path / "away.tar").rename(source / "train-0.tar")
    assert select_corpus(CONFIG, corpus, tmp_path / "undisturbed") == {**report, "asked": 18}
    assert contents(tmp_path / "undisturbed") == contents(out)


def test_every_kept_row_gets_a_status(tmp_path: Path) -> None:
    small = picture(3)[:-200]
    images = {"fine": picture(1), "truncated": small, "not_an_image": b"<html>", "too_large": picture(2) + b"\0" * 10**6}
    source = tmp_path / "in" / "x.tar"
    write_tar(source, [file for name, image in images.items() for file in sample(name, image, caption=f"a cat, {name}")])
    corpus = corpus_of(tmp_path / "corpus", source)
    config = replace(CONFIG, fetch=FetchConfig(max_bytes=10**6))
    report = select_corpus(config, corpus, tmp_path / "out")
    assert report["by_status"] == {"success": 1, "truncated": 1, "not_an_image": 1, "too_large": 1}
    by_caption = {row["caption"].removeprefix("a cat, "): row for row in statuses(tmp_path / "out")}
    assert {name: row["status"] for name, row in by_caption.items()} == {**{name: name for name in images}, "fine": "success"}
    assert by_caption["fine"]["bytes"] == len(picture(1))

    write_tar(
        source,
        [*sample("fine", picture(1), caption="another cat"), *sample("truncated", picture(4), caption="a cat, truncated")],
    )
    report = select_corpus(config, corpus, tmp_path / "changed")
    assert report["by_status"] == {"success": 1, "sample_changed": 1, "no_such_sample": 2}


def test_samples_of_one_name_keep_their_own_images(tmp_path: Path) -> None:
    files = [file for i in range(4) for file in sample("0001", picture(i), caption=f"a cat, number {i % 3}")]
    write_tar(tmp_path / "in" / "x.tar", files)
    rows = {
        row["key"]: row for table in read_links(SourceConfig(path=str(tmp_path / "in"))) for row in table.to_pylist()
    }  # the fourth repeats the first, which the filter drops
    (tmp_path / "corpus" / "kept").mkdir(parents=True)
    kept = [{**row, "entities": ["cat"]} for row in rows.values()]
    table = pa.Table.from_pylist(kept, schema=pa.schema([*CORPUS, SAMPLE]))
    pq.write_table(table, tmp_path / "corpus" / "kept" / "0.parquet")
    select_corpus(CONFIG, tmp_path / "corpus", tmp_path / "out")
    found = {row["caption"]: row["sha256"] for row in statuses(tmp_path / "out")}
    write_tar(
        tmp_path / "in2" / "x.tar",
        [file for i in range(3) for file in sample(f"{i}", picture(i), caption=f"a cat, number {i}")],
    )
    select_corpus(CONFIG, corpus_of(tmp_path / "corpus2", tmp_path / "in2"), tmp_path / "out2")
    assert found == {row["caption"]: row["sha256"] for row in statuses(tmp_path / "out2")}
    assert len(found) == 3


def captioned(name: str, image: bytes | None, captions: list[str]) -> list[tuple[str, bytes]]:
    files = [(f"{name}.jpg", image)] if image is not None else []
    return [*files, (f"{name}.json", json.dumps({"captions": captions}).encode())]


def corpus_of_captions(folder: Path, tar: Path, captions: dict[str, list[str]]) -> Path:
    rows = [
        {"key": key_of(f"{tar.name}::{name}", text), "url": "", "caption": text, "entities": [], "sample": f"{tar}::{name}"}
        for name, texts in captions.items()
        for text in texts
    ]
    return write_corpus(folder, pa.Table.from_pylist(rows, schema=pa.schema([*CORPUS, SAMPLE])), files=1)


def test_a_sample_with_several_captions_is_taken_once_and_what_changed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(path: str, name: str, texts: Mapping[str, bytes]) -> set[str]:
        return {key_of(f"{Path(path).name}::{name}", text) for text in json.loads(texts["json"])["captions"]}

    monkeypatch.setattr(select, "keys_of", keys)
    tar = tmp_path / "in" / "x.tar"
    captions = {name: [f"cat {name} {at}" for at in range(3)] for name in ("fine", "changed", "partly", "bare", "gone", "bad")}
    corpus = corpus_of_captions(tmp_path / "corpus", tar, captions)
    files = captioned("fine", picture(0), captions["fine"]) + captioned("changed", picture(1), ["another"])
    files += captioned("partly", picture(2), captions["partly"][1:]) + captioned("bare", None, captions["bare"])
    write_tar(tar, [*files, *captioned("bad", b"<html>", captions["bad"])])
    report = select_corpus(CONFIG, corpus, tmp_path / "out")
    assert report["by_status"] == {"success": 2, "sample_changed": 2, "no_image": 1, "no_such_sample": 1, "not_an_image": 1}
    assert (report["links"], report["captions"], report["repeated"]) == (7, 18, 0)
    rows = statuses(tmp_path / "out")
    told: dict[str, list[str]] = {}
    for row in rows:
        told.setdefault(row["status"], []).extend(row["captions"] or [row["caption"]])
    assert sorted(told["success"]) == sorted(captions["fine"] + captions["partly"][1:])
    assert sorted(told["sample_changed"]) == sorted([*captions["changed"], captions["partly"][0]])
    assert (sorted(told["no_image"]), sorted(told["no_such_sample"])) == (captions["bare"], captions["gone"])
    assert sum(json.loads((tmp_path / "out" / "sizes.json").read_text()).values()) == 2


def test_samples_of_one_name_part_their_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(path: str, name: str, texts: Mapping[str, bytes]) -> set[str]:
        return {key_of(f"{Path(path).name}::{name}", text) for text in json.loads(texts["json"])["captions"]}

    monkeypatch.setattr(select, "keys_of", keys)
    tar, pairs = tmp_path / "in" / "x.tar", [["a", "b"], ["c", "d"]]
    write_tar(tar, [file for at, pair in enumerate(pairs) for file in captioned("1", picture(at), pair)])
    corpus = corpus_of_captions(tmp_path / "corpus", tar, {"1": ["a", "b", "c", "d"]})
    report = select_corpus(CONFIG, corpus, tmp_path / "out")
    assert (report["links"], report["captions"], report["success"]) == (2, 4, 2)
    found = {row["sha256"]: sorted(row["captions"]) for row in statuses(tmp_path / "out")}
    assert found == {hashlib.sha256(picture(at)).hexdigest(): pair for at, pair in enumerate(pairs)}


def test_tars_of_one_name_in_two_folders_are_two_shards(tmp_path: Path) -> None:
    for i, folder in enumerate(("b", "a")):
        write_tar(tmp_path / "in" / folder / "x.tar", sample("0001", picture(i), caption=f"a cat in {folder}"))
    corpus = corpus_of(tmp_path / "corpus", tmp_path / "in" / "*" / "x.tar")
    select_corpus(CONFIG, corpus, tmp_path / "out")
    assert [row["caption"] for row in statuses(tmp_path / "out")] == ["a cat in a", "a cat in b"]


def test_other_settings_and_smaller_corpora_leave_nothing_behind(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "in")
    corpus, out = corpus_of(tmp_path / "corpus", source), tmp_path / "out"
    first = select_corpus(CONFIG, corpus, out)
    second = select_corpus(DownloadConfig(image=ImageConfig(image_size=32)), corpus, out)
    assert first["digest"] != second["digest"]
    assert {row["height"] for row in statuses(out)} == {32}
    (source / "train-0.tar").unlink()
    (source / "train-2.tar").unlink()
    select_corpus(CONFIG, corpus_of(tmp_path / "small", source), out)
    assert list(contents(out)) == ["00000.index", "00000.parquet", "00000.tar", "00000_stats.json", "sizes.json"]


def test_a_sample_that_the_corpus_repeats_is_taken_once(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", write_tars(tmp_path / "in", tars=1))
    once = select_corpus(CONFIG, corpus, tmp_path / "once")
    table = pq.read_table(corpus / "kept" / "00000.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(2, 1)]), corpus / "kept" / "00000.parquet")
    assert select_corpus(CONFIG, corpus, tmp_path / "twice") == {**once, "repeated": 1}


def test_no_image_at_all_is_no_result(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "x.tar", [*sample("1", b"no image"), *sample("2", b"no image", caption="a dog")])
    corpus, out = corpus_of(tmp_path / "corpus", tmp_path / "in"), tmp_path / "out"
    with pytest.raises(
        InputError,
        match=r"^no image could be taken out of the tars: 2 of 2 samples failed with 'not_an_image', such as the cap[^\n]*$",
    ):
        select_corpus(CONFIG, corpus, out)
    assert not (out / "sizes.json").exists()
    assert not list((out / "_done").iterdir())


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "in", tars=1)
    corpus = corpus_of(tmp_path / "corpus", source)
    assert in_tars(corpus)
    (source / "train-0.tar").unlink()
    with pytest.raises(InputError, match=r"train-0.tar cannot be opened"):
        select_corpus(CONFIG, corpus, tmp_path / "out")
    table = pq.read_table(corpus / "kept" / "00000.parquet")
    pq.write_table(table.drop_columns(["sample"]), corpus / "kept" / "00000.parquet")
    assert not in_tars(corpus)
    with pytest.raises(InputError, match=r"column 'sample' is missing"):
        select_corpus(CONFIG, corpus, tmp_path / "out")
    pq.write_table(table.slice(0, 0), corpus / "kept" / "00000.parquet")
    with pytest.raises(InputError, match=r"holds no links"):
        select_corpus(CONFIG, corpus, tmp_path / "out")
    with pytest.raises(InputError, match=r"no parquet files there"):
        select_corpus(CONFIG, tmp_path / "nothing", tmp_path / "out")
