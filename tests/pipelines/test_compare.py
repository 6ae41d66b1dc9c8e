"""The comparison of runs: its numbers are the runs', its page is one inert file, and a phone shows it as it is."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cluster.tracking import TrackingConfig
from filtering.files import write_json, write_table
from helpers.pages import Page
from miniature.world import WorldConfig
from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.intervals import AVERAGE, ImageCounts, difference_intervals, write_image_counts
from owseg.evaluation.pictures import IMAGE_KEY
from owseg.evaluation.protocols import EvaluateConfig
from pipelines import compare
from pipelines.app.run_dir import prepare_run_dir
from pipelines.app.settings import Config
from pipelines.app.stage_marker import StageMarker, write_marker
from pipelines.comparisons.anchors import anchors, fits
from pipelines.comparisons.runs import read_runs
from pipelines.comparisons.scores import lines_of
from storage.client import StorageConfig

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
SETS = ("voc21", "ade20k")
CLASSES = ("cat", "dog", "<b>cow</b>")
HOSTILE = "<img src=x onerror=alert(1)>"


def counts(seed: int, better: float) -> ImageCounts:
    """Ten images of three classes; `better` raises every intersection."""
    rng = np.random.default_rng(seed)
    union = rng.integers(400, 900, (10, len(CLASSES)))
    return ImageCounts(
        tuple(f"image {at}" for at in range(10)), (union * (rng.uniform(0.2, 0.5) + better)).astype(np.int64), union
    )


def finish(folder: Path, methods: dict[str, float], pictured: str = "image 3", **settings: Any) -> Path:
    """A run whose evaluation is complete: scores by method that differ by so much, a step log and pictures."""
    config = Config(run_dir=str(folder), methods=("maskclip", "tcl"), tracking=TrackingConfig(enabled=False))
    prepare_run_dir(replace(config, **settings))
    miou: dict[str, dict[str, float]] = {}
    for name, better in methods.items():
        row = miou.setdefault(name, {})
        for number, dataset in enumerate(SETS):
            found = counts(number, better)
            iou = 100 * found.intersection.sum(0) / found.union.sum(0)
            row[dataset] = float(iou.mean())
            write_image_counts(folder / "evaluate" / name / f"{dataset}.npz", found)
            write_json(folder / "evaluate" / name / f"{dataset}.json", {"IoU": dict(zip(CLASSES, iou.tolist(), strict=True))})
            about = PngInfo()
            about.add_itxt(IMAGE_KEY, pictured)
            picture = folder / "evaluate" / "pictures" / name / f"{dataset}-best.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1200, 300), "navy").save(picture, pnginfo=about)
        row[AVERAGE] = float(np.mean([row[dataset] for dataset in SETS]))
    log = folder / "train" / "tcl" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"step": step, "loss/total": 3 / step}) + "\n" for step in range(1, 6)))
    result = {"mIoU": miou, "protocol": f"preset tcl {HOSTILE}", "digest": folder.name, "averages": {}}
    write_marker(folder, "evaluate", StageMarker(fingerprint="", digest="", seconds=1.0, result=result))
    costs = {"costs": {"tcl": {"pairs": 4800, "cpu_seconds": 12.5, "peak_memory_mb": 900}}}
    write_marker(folder, "train", StageMarker(fingerprint="", digest="", seconds=1.0, result=costs))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    one = finish(tmp_path / "one", {"maskclip": 0.0, "tcl": 0.1})
    return one, finish(tmp_path / HOSTILE, {"tcl": 0.25}, seed=7)


@pytest.fixture
def page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """The page of some runs, and what the verb prints."""

    def make(*words: object) -> tuple[str, str]:
        out = tmp_path / "out.html"
        assert compare.main([*map(str, words), "--out", str(out)]) == 0, capsys.readouterr().err
        return out.read_text(), capsys.readouterr().out

    return make


def test_its_numbers_are_the_runs_own(runs: tuple[Path, Path], page: Callable[..., tuple[str, str]]) -> None:
    html, printed = page(*runs)
    text = " ".join(Page(html).text.split())
    one, two = read_runs([*map(str, runs)], StorageConfig())
    for run in (one, two):
        for row in run.miou.values():
            assert all(f"{value:.1f}" in text and f"{value:.1f}" in printed for value in row.values())
    paired = difference_intervals([two.counts("tcl")], [one.counts("tcl")])
    line = next(line for line in lines_of([one, two]) if line.run == 1)
    assert {name: change.interval for name, change in line.changes.items()} == paired
    for found in paired.values():
        assert f"{found.mean:+.1f}* ({found.low:.1f}..{found.high:.1f})" in text
    assert f"B tcl - A tcl: average {paired[AVERAGE].mean:+.1f}" in printed
    before, after = one.class_iou("tcl", "voc21")["dog"], two.class_iou("tcl", "voc21")["dog"]
    cells = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert f"{before:.1f} → {after:.1f} {after - before:+.1f}" in cells  # type: ignore[operator]
    assert "setting A B seed 0 7 Corpora" in cells  # what differs, and nothing else
    assert html.count('class="series run') == 2
    assert "4,800" in text
    assert max(map(len, printed.splitlines()[3:-1])) <= 80
    assert all(f"{anchor.method} quoted" in text for anchor in anchors())
    assert "do not compare the numbers" in text


def write_corpus(run: Path, kept: str, dropped: dict[str, str], top_k: int) -> None:
    """A corpus of captions with one letter for a key, as far as its report and its tables tell of it."""
    corpus = run / "corpus"
    write_table(corpus / "kept" / "00000.parquet", pa.table({"key": [*kept]}))
    write_table(corpus / "dropped" / "00000.parquet", pa.table({"key": [*dropped], "drop_reason": [*dropped.values()]}))
    reasons = dict(Counter(dropped.values()))
    entities = [{"entity": HOSTILE, "in_corpus": len(kept)}, {"entity": f"of {run.name[:3]}", "in_corpus": 3}]
    report = {"links": len(kept) + len(dropped), "kept": len(kept), "dropped": reasons, "digest": kept, "settings": {}}
    write_json(corpus / "report.json", {**report, "list": {"top_k": top_k}, "top_entities": entities})


def test_corpora_are_told_apart(runs: tuple[Path, Path], page: Callable[..., tuple[str, str]]) -> None:
    write_corpus(runs[0], "abcde", {"f": "too_short", "g": "markup"}, 3)
    assert "Fewer than two of the runs have a corpus of their own." in page(*runs)[0]
    write_corpus(runs[1], "abcf", {"d": "rare_entity", "g": "markup"}, 2)
    html = page(*runs)[0]
    text = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "A and B both keep 3 captions." in text
    assert "Kept by A alone 2 B: rare entity 1 B: not in source 1" in text
    assert "Kept by B alone 1 A: too short 1" in text
    assert "links 7 6 kept 5 4" in text
    assert "Entities in A's list alone: of one (3)." in html
    assert HOSTILE in Page(html).text
    assert (
        "B learned from the same corpus as A: 5 captions." in page(runs[0], shutil.copytree(runs[0], runs[0].parent / "c"))[0]
    )


def test_it_is_one_file_in_which_nothing_foreign_acts(runs: tuple[Path, Path], page: Callable[..., tuple[str, str]]) -> None:
    html, _ = page(*runs)
    found = Page(html)
    assert HOSTILE in found.text
    assert "<b>cow</b>" in found.text
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "link", "iframe", "object", "form", "base"})
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    sources = [attributes["src"] for tag, attributes in found.elements if tag == "img"]
    assert len(sources) == 2 * len(SETS)
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert all(str(attributes["href"]).startswith("#") for tag, attributes in found.elements if tag == "a")
    assert re.search(r"url\(|https?://", html) is None


def test_what_cannot_be_paired_is_said(tmp_path: Path, page: Callable[..., tuple[str, str]]) -> None:
    """Images of another world bear the same names; runs that drew other images; a method that the first run lacks."""
    one = finish(tmp_path / "one", {"tcl": 0.0})
    two = finish(tmp_path / "two", {"tcl": 0.1}, pictured="image 4")
    other = finish(tmp_path / "other", {"maskclip": 0.1}, miniature=WorldConfig(links=999))
    html, printed = page(one, two, other)
    text = " ".join(Page(html).text.split())
    assert "none was drawn by two of them" in text
    assert "A has no maskclip: C is compared with its tcl" in text
    assert "C maskclip - A tcl: average +10.0, unpaired" in printed
    assert "miniature.links" in text
    line = next(line for line in lines_of(read_runs([*map(str, (one, two, other))], StorageConfig())) if line.run == 2)
    assert {change.interval for change in line.changes.values()} == {None}


def test_published_scores_are_whole_and_stand_beside_their_own_kind_alone(tmp_path: Path) -> None:
    found = {anchor.method: anchor for anchor in anchors()}
    assert all(anchor.scores.keys() <= {*BENCHMARKS, AVERAGE} and anchor.source for anchor in found.values())
    averages = {name: round(found[name].scores[AVERAGE], 1) for name in ("MaskCLIP", "TCL", "TCL + PAMR", "Talk2DINO ViT-B")}
    assert averages == {"MaskCLIP": 27.9, "TCL": 33.9, "TCL + PAMR": 37.2, "Talk2DINO ViT-B": 43.8}
    assert AVERAGE not in found["OVSegmentor (CC4M)"].scores
    finish(tmp_path / "one", {"tcl": 0.0})
    [run, _] = read_runs([str(tmp_path / "one"), str(finish(tmp_path / "two", {"tcl": 0.0}))], StorageConfig())
    real = replace(run, config=replace(run.config, evaluate=EvaluateConfig(root="/data")))
    assert (fits(run), fits(real)) == (False, True)
    for key, value in {"short_side": 224, "limit": 10, "preset": "sclip"}.items():
        evaluate = EvaluateConfig(**{**asdict(EvaluateConfig(root="/data")), key: value})
        assert not fits(replace(run, config=replace(run.config, evaluate=evaluate)))


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, begun = finish(tmp_path / "one", {"tcl": 0.0}), tmp_path / "begun"
    prepare_run_dir(Config(run_dir=str(begun)))
    (tmp_path / "sweep" / "cells").mkdir(parents=True)
    for words, wrong in (
        ([one], "give 2 to 26"),
        ([one, one], "is named twice"),
        ([one, begun], "its evaluation is not complete"),
        ([one, tmp_path / "none"], "no such folder"),
        ([one, tmp_path], "holds no run"),
        ([one, tmp_path / "sweep"], "one of its runs, in cells/"),
        ([one, begun, "--out", tmp_path / "none" / "page.html"], "--out"),
        ([one, begun, "--out", tmp_path / "sweep"], "is no name of a file"),
        ([one, begun, "--out", ""], "is no name of a file"),
        ([one, begun, "--out", "/proc/x.html"], "--out: '/proc/x.html' cannot be written"),
        ([one, begun, "--out", tmp_path / ("x" * 300)], "cannot be written"),
        ([one, ""], "names no folder"),
    ):
        assert compare.main([*map(str, words)]) == 2
        error = capsys.readouterr().err
        assert wrong in error
        assert error.count("\n") == 1
    assert not [*tmp_path.glob(".*")], "nothing half written is left"


def parts(run: Path) -> Iterator[tuple[Path, bytes]]:
    """Files of a run that the page can do without, each with what this program does not write there."""
    picture = run / "evaluate" / "pictures" / "tcl" / "voc21-best.png"
    yield from ((picture, content) for content in (b"", b"x", picture.read_bytes()[:400]))
    for costs in (b"5", b'{"tcl": {"pairs": "x"}}'):
        yield run / "train.done.json", b'{"fingerprint": "", "digest": "", "seconds": 1, "result": {"costs": %s}}' % costs
    for content in (b"[" * 100_000, b'{"IoU": {"cat": "x"}}'):
        yield run / "evaluate" / "tcl" / "voc21.json", content
    yield run / "evaluate" / "tcl" / "voc21.npz", b"no counts"
    yield from ((run / "corpus" / "report.json", content) for content in (b"[]", b"[" * 100_000))
    yield run / "corpus" / "kept" / "00000.parquet", b"PAR1 and no more"
    yield from ((run / "mlflow.json", content) for content in (b'{"run_id": {}}', b"["))


def test_a_damaged_part_is_left_out_and_named(runs: tuple[Path, Path], page: Callable[..., tuple[str, str]]) -> None:
    for run in runs:
        write_corpus(run, f"abc{run.name[:1]}", {"g": "markup"}, 3)
    for file, content in [*parts(runs[1])]:
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(content)
        html, printed = page(*runs)
        [line] = [line for line in printed.splitlines() if line.startswith(f"{file}: ")]
        assert file.name == "mlflow.json" or line[:60] in Page(html).text, (file, content[:40])
        assert "B tcl - A tcl: average" in printed
        file.unlink() if before is None else file.write_bytes(before)


def test_a_log_with_a_line_that_was_cut(runs: tuple[Path, Path], page: Callable[..., tuple[str, str]]) -> None:
    """The other lines are drawn."""
    log = runs[1] / "train" / "tcl" / "metrics.jsonl"
    whole, lines = page(*runs)[0], log.read_bytes().splitlines(keepends=True)
    for wrong in (
        b'{"step": 3, "lo\n',
        b"\xff\n",
        b"[]\n",
        b'{"step": null, "loss/total": 1}\n',
        b'{"step": 1, "loss/total": NaN}\n',
    ):
        log.write_bytes(b"".join([*lines[:2], wrong, *lines[2:]]))
        assert page(*runs)[0] == whole


@pytest.mark.parametrize(
    "change",
    [
        {"mIoU": {"tcl": {}}}, {"mIoU": [1]}, {"mIoU": {"tcl": {"average": None}}}, {"mIoU": {"tcl": {"average": "x"}}},
        {"mIoU": {"tcl": {"average": 1.0, "voc21": "x"}}}, {"protocol": 5}, {"data": None}, {"averages": {"tcl": 5}},
    ],
    ids=str,
)  # fmt: skip
def test_scores_that_are_none(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], change: dict[str, Any]) -> None:
    """Without them there is nothing to compare."""
    file = runs[1] / "evaluate.done.json"
    marker = json.loads(file.read_text())
    marker["result"] |= change
    write_json(file, marker)
    assert compare.main([*map(str, runs), "--out", str(runs[0] / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: is damaged (")
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.is_file(), reason="Chromium is not installed")
def test_a_phone_shows_it_without_moving_sideways(runs: tuple[Path, Path], page: Callable[..., tuple[str, str]]) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    html, _ = page(*runs)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=[*QUIET])
        for scheme in ("light", "dark"):
            shown = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
            shown.set_content(html)
            assert shown.evaluate("document.documentElement.scrollWidth") == 390
            assert shown.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        browser.close()
