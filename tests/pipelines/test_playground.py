"""The playground: what a visitor may ask of it, and the page as a browser shows it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import tiny
from helpers.chain import environment
from helpers.paths import REPO
from owseg import InputError
from owseg.predict import Model, load, percent
from pipelines import playground
from pipelines.segmenting import playground as behind
from pipelines.segmenting.playground import Playground

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")


def on(*sources: object) -> Playground:
    return Playground([str(source) for source in sources], {"encoder_model": "", "encoder_weights": ""}, "cpu")


def test_the_methods_of_runs_are_offered_and_loaded_when_they_are_chosen(
    tiny_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    init = Model.__init__
    monkeypatch.setattr(
        Model, "__init__", lambda self, checkpoint, *a: loaded.append(checkpoint.method.name) or init(self, checkpoint, *a)
    )
    here = on(tiny_run)
    assert [*here.choices] == ["tcl", "plain_clip", "maskclip", "sclip", "clearclip", "naclip"]
    assert here.first == ["tcl"]
    assert loaded == []
    for _ in range(2):
        found = here.segment(str(photo), "red wall, a green thing\nblue", ["maskclip", "tcl"], background=True)
    assert loaded == ["zero_shot", "tcl"]
    assert [*found] == ["maskclip", "tcl"]
    for method, result in found.items():
        expected = load(tiny_run, method=method).segment(photo, tiny.LABELS)
        assert (result.labels == expected.labels).all()
    assert (here.segment(str(photo), "red wall", ["tcl"], background=False)["tcl"].labels == 0).all()
    two = on(tiny_run, tiny_run / "train" / "tcl")
    assert [*two.choices][:2] == [f"tcl ({tiny_run})", f"tcl ({tiny_run}/train/tcl)"]


def test_a_threshold_moves_without_the_model(tiny_run: Path, photo: Path) -> None:
    result = load(tiny_run).segment(photo, tiny.LABELS)
    half = float(np.median(result.scores))
    moved = result.at(half)
    assert (moved.labels == load(tiny_run, background_threshold=half).segment(photo, tiny.LABELS).labels).all()
    assert (np.asarray(moved.drawn(opacity=0)) == result.image).all()
    everywhere = load(tiny_run).segment(photo, tiny.LABELS, background=False)
    assert everywhere.at(0.9) is everywhere


def test_labels_are_text_in_the_legend(tiny_run: Path, photo: Path) -> None:
    from pipelines.segmenting.page import _shares, slider_range

    hostile = "<img src=x onerror=alert(1)>"
    result = load(tiny_run).segment(photo, [hostile, "red wall"], background=False)
    shown = _shares(result)
    assert "<img" not in shown
    assert "&lt;img src=x" in shown
    assert all(percent(share) in shown for share in result.shares().values())
    least, most, step = slider_range(result, 0.5)
    assert least <= min(result.scores.min(), 0.5) < max(result.scores.max(), 0.5) <= most
    assert len(f"{least}{most}") < 16, "round numbers"
    assert 0.0005 <= step <= 0.05


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"photo": None}, "photo: there is none"),
        ({"text": " , \n"}, "labels: there are none"),
        ({"text": "cat, Cat"}, "labels: 'Cat' is given twice"),
        ({"text": ",".join(map(str, range(101)))}, "labels: 101 are too many; at most 100"),
        ({"text": "x" * 5001}, "labels: 5001 letters are too many"),
        ({"names": []}, "methods: choose at least one of tcl, "),
        ({"names": ["../tcl"]}, "methods: choose at least one of tcl, "),
    ],
)
def test_what_cannot_be_asked_for(tiny_run: Path, photo: Path, given: dict[str, Any], message: str) -> None:
    asked = {"photo": str(photo), "text": "cat", "names": ["tcl"]} | given
    with pytest.raises(InputError) as told:
        on(tiny_run).segment(**asked, background=True)
    assert str(told.value).startswith(message)


def test_photos_are_bounded_before_they_are_decoded(
    tiny_run: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = on(tiny_run)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"^text.png: not a readable image"):
        here.segment(str(tmp_path / "text.png"), "cat", ["tcl"], background=True)
    Image.new("1", (6000, 5000)).save(tmp_path / "large.png")
    monkeypatch.setattr(behind, "read_photo", lambda path: pytest.fail("its pixels are read"))
    with pytest.raises(InputError, match=r"^photo: 6000 x 5000 pixels are too many; at most 25 megapixels"):
        here.segment(str(tmp_path / "large.png"), "cat", ["tcl"], background=True)
    monkeypatch.setattr(behind, "MAX_BYTES", 10)
    with pytest.raises(InputError, match=r"^photo: .* MB are too many"):
        here.segment(str(photo), "cat", ["tcl"], background=True)


def test_a_mistake_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert playground.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none: no such checkpoint; ")
    assert playground.main([]) == 2


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.test", False)]
)
def test_an_address_that_others_reach_is_known(host: str, alone: bool) -> None:
    assert playground._is_loopback(host) == alone


@pytest.fixture
def address(tiny_run: Path, tmp_path: Path) -> Iterator[str]:
    """Of a playground in a process of its own, whose temporary files lie below the test's folder and go with it."""
    given = environment() | {"TMPDIR": str(tmp_path / "temporary"), "HTTP_PROXY": "http://127.0.0.1:9"}
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "pipelines/playground.py", str(tiny_run)]
    with subprocess.Popen(command, cwd=REPO, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("playground: http://127.0.0.1:"), line
            yield line.split()[1]
            assert any((tmp_path / "temporary").glob("owseg-app-*/uploads/*"))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 128 + signal.SIGINT
            assert err.splitlines()[0].startswith("interrupted, stopping"), err
            assert not any((tmp_path / "temporary").glob("owseg-app-*"))
        finally:
            process.kill()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page in a browser; `asked` lists what it asks for."""
    sync = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium here")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*QUIET])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(120_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        yield page
        browser.close()


@pytest.mark.slow
def test_a_photo_and_three_labels_give_the_masks_of_segment(page: Any, tiny_run: Path, photo: Path, tmp_path: Path) -> None:
    expected = load(tiny_run).segment(photo, tiny.LABELS)
    page.set_input_files("#photo input[type=file]", str(photo))
    page.wait_for_selector("#photo img")
    page.fill("#labels :is(input, textarea)", ", ".join(tiny.LABELS))
    page.click("#segment")
    page.wait_for_selector("#overlay-0 img")
    assert percent(expected.nothing) in page.inner_text("#shares-0")
    files = files_of(page)
    assert (np.asarray(Image.open(files["photo.mask.png"])) == expected.labels + 1).all()
    told = json.loads(files["photo.json"].read_text())
    assert [entry["label"] for entry in told["labels"]] == tiny.LABELS
    half = round(float(np.median(expected.scores)), 2)
    page.fill("#threshold-0 input[type=number]", str(half))
    page.keyboard.press("Enter")
    moved = expected.at(half)
    page.wait_for_function("share => document.querySelector('#shares-0').innerText.includes(share)", arg=percent(moved.nothing))
    assert (np.asarray(Image.open(files_of(page)["photo.mask.png"])) == moved.labels + 1).all()
    page.fill("#labels :is(input, textarea)", "cat, cat")
    page.click("#segment")
    page.wait_for_selector("text=labels: 'cat' is given twice")
    assert page.is_visible("#overlay-0 img"), "a mistake leaves what is there"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.is_visible("#segment")
    assert {url.split("/")[2] for url in page.asked if "://" in url} == {page.url.split("/")[2]}, "nothing from elsewhere"


def files_of(page: Any) -> dict[str, Path]:
    """What the page offers of the first method, saved."""
    page.wait_for_timeout(1000)  # the slider's event may be under way, which the files must follow
    before = page.eval_on_selector_all("#files-0 a", "links => links.map(link => link.href)")
    page.click("#make-0")
    page.wait_for_function(
        "before => { const now = [...document.querySelectorAll('#files-0 a')].map(link => link.href);"
        " return now.length >= 3 && now.join() != before.join() }",
        arg=before,
    )
    links = page.query_selector_all("#files-0 a")
    found = {}
    for link in links:
        with page.expect_download() as download:
            link.click()
        path = Path(os.path.realpath(download.value.path()))
        found[download.value.suggested_filename] = path
    return found
