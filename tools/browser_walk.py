"""Walk through a finished run as a reader does, in headless Chromium, and take the pictures that the guides show.

    python tools/browser_walk.py runs/demo --other runs/no-area --pictures docs/pictures

MLflow (as `make up` opens it), the filter's report, the playground and a comparison at a phone's width. Each step looks for
what must be there, and the walk ends with the step that does not find it. Asks for the machine's own Chromium.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from mlflow import MlflowClient
from playwright.sync_api import Page, sync_playwright

from cluster.store_uri import of_folder

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 120_000
"""Milliseconds for what a page asks for to appear."""
CLASSIC = "workflowType=machine_learning"


class Walk(NamedTuple):
    """What all steps use."""

    page: Page
    server: str
    run_dir: Path
    store: str
    pictures: Path | None

    def open(self, path: str) -> None:
        """A page of MLflow by what follows #; always loaded anew."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.server}/#/{path}")

    def see(self, *texts: str) -> None:
        """Wait until each of these texts is on the page."""
        for text in texts:
            self.page.get_by_text(text).first.wait_for(timeout=PATIENCE, state="attached")

    def picture(self, name: str, **options: Any) -> None:
        """A picture of what is shown, where pictures are asked for."""
        self.page.wait_for_timeout(1500)  # charts are drawn after their data are there
        if self.pictures:
            self.page.screenshot(path=self.pictures / f"{name}.png", **options)


def mlflow_pages(walk: Walk) -> None:
    """Experiment, parent, methods beside each other, a training with its slider, a model, the filter's report."""
    memory = json.loads((walk.run_dir / "mlflow.json").read_text(encoding="utf-8"))
    client = MlflowClient(walk.store)
    parent, children = client.get_run(memory["run_id"]), memory["children"]
    place = f"experiments/{parent.info.experiment_id}"
    walk.open(f"{place}/runs?{CLASSIC}")
    walk.see("matching run", parent.info.run_name)
    walk.picture("mlflow_runs")
    walk.open(f"{place}/runs/{parent.info.run_id}?{CLASSIC}")
    walk.see("Description", "Zero-shot mIoU in percent", "Parameters", "corpus/kept")
    walk.picture("mlflow_run")
    evaluations = [run for name, run in children.items() if name.startswith("evaluate/")]
    runs, experiments = (quote(json.dumps(value)) for value in (evaluations[-3:], [parent.info.experiment_id]))
    walk.open(f"compare-runs?runs={runs}&experiments={experiments}")
    walk.see("Comparing", "Run details", "Metrics")
    scroll_to(walk, "mIoU/ade20k")
    walk.picture("mlflow_compare")
    walk.open(f"{place}/runs/{evaluations[-1]}/model-metrics?{CLASSIC}")
    walk.see("mIoU")
    walk.picture("mlflow_scores")
    trained = next(run for name, run in reversed(children.items()) if name.startswith("train/") and "clip" not in name)
    slider(walk, f"{place}/runs/{trained}/model-metrics?{CLASSIC}")
    walk.open(f"{place}/models?{CLASSIC}")
    walk.see("Source run")
    (model, *_) = client.search_logged_models(
        [parent.info.experiment_id],
        order_by=[{"field_name": "metrics.mIoU/ade20k", "ascending": False, "dataset_name": "ade20k"}],
    )
    walk.open(f"{place}/models/{model.model_id}?{CLASSIC}")
    walk.see("Source run", "mIoU/ade20k")
    walk.picture("mlflow_model")
    walk.open(f"{place}/runs/{children['filter/filter']}/artifacts/report.html?{CLASSIC}")
    walk.see("report.html")
    walk.page.frame_locator("iframe").first.get_by_text("Corpus report").first.wait_for(timeout=PATIENCE, state="attached")
    walk.picture("mlflow_corpus")


def scroll_to(walk: Walk, text: str) -> None:
    """Bring a row of a long table into view, of which a page holds no more than what is shown."""
    for _ in range(100):
        found = walk.page.get_by_text(text, exact=True)
        if found.count():
            found.first.scroll_into_view_if_needed()
            return
        walk.page.evaluate(_SCROLL)
        walk.page.wait_for_timeout(300)
    raise AssertionError(f"{text} is in no table of the page")


_NO_ASSISTANT = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'
"""MLflow's assistant opens itself on the first load, and takes a quarter of the page."""
_SCROLL = """
for (const element of document.querySelectorAll("*"))
    if (element.scrollHeight > element.clientHeight && ["auto", "scroll"].includes(getComputedStyle(element).overflowY))
        element.scrollTop += 200
"""


def slider(walk: Walk, path: str) -> None:
    """The same tuning images at each checkpoint: the slider goes from one to the next, and each has its picture."""
    walk.open(path)
    walk.see("train/loss")
    section = walk.page.get_by_text("tuning", exact=True).last
    section.wait_for(timeout=PATIENCE)
    section.scroll_into_view_if_needed()  # its cards are made then
    card = walk.page.get_by_test_id("experiment-view-compare-runs-card").filter(has=walk.page.get_by_role("slider")).first
    handle = card.get_by_role("slider")
    handle.wait_for(timeout=PATIENCE)
    shown = []
    for _ in range(2):
        handle.press("ArrowRight")  # it begins at step 0, before the first checkpoint
        card.locator("img").wait_for(timeout=PATIENCE)
        walk.page.wait_for_timeout(1500)
        shown.append((handle.get_attribute("aria-valuenow"), card.locator("img").get_attribute("src")))
    assert len({*shown}) == 2, f"the slider over checkpoints shows the same: {shown}"
    for other in walk.page.get_by_role("slider").all():
        other.press("ArrowRight")
    walk.picture("mlflow_slider")


def report_page(walk: Walk) -> None:
    """The corpus report on a phone: nothing moves sideways."""
    walk.page.set_viewport_size({"width": 390, "height": 844})
    walk.page.goto((walk.run_dir / "corpus" / "report.html").resolve().as_uri())
    walk.see("Corpus report", "Funnel")
    assert walk.page.evaluate("document.documentElement.scrollWidth") <= 390, "the corpus report is wider than a phone"


def playground_page(walk: Walk) -> None:
    """A photo and three labels give a mask, at a desk."""
    photo = min(walk.run_dir.glob("world/benchmarks/**/*.jpg"))
    command = [sys.executable, "pipelines/playground.py", str(walk.run_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            walk.page.set_viewport_size({"width": 1200, "height": 900})
            walk.page.goto(process.stdout.readline().split()[1])
            walk.page.set_input_files("#photo input[type=file]", str(photo))
            walk.page.wait_for_selector("#photo img")
            walk.page.fill("#labels :is(input, textarea)", "bus, umbrella, wall")
            walk.page.click("#segment")
            walk.page.wait_for_selector("#overlay-0 img", timeout=PATIENCE)
            walk.picture("playground_page")
        finally:
            os.killpg(process.pid, signal.SIGINT)


def comparison_page(walk: Walk, other: Path, out: Path) -> None:
    """Two runs side by side on a phone."""
    runs = (str(walk.run_dir), str(other))
    subprocess.run([sys.executable, "pipelines/compare.py", *runs, "--out", str(out)], check=True, cwd=ROOT)
    walk.page.set_viewport_size({"width": 390, "height": 844})
    walk.page.goto(out.resolve().as_uri())
    walk.see("Scores", "Settings")
    assert walk.page.evaluate("document.documentElement.scrollWidth") <= 390, "the comparison is wider than a phone"
    walk.picture("compare_phone")


ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def mlflow_of(store: str) -> Iterator[str]:
    """A server of the run's store, as `make up` starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _wait_for(address: str) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def walk_through(run_dir: Path, other: Path, out: Path, pictures: Path | None = None) -> None:
    """All of it; raises where a step does not find what must be there."""
    store = of_folder(str(run_dir))
    with mlflow_of(store) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.add_init_script(_NO_ASSISTANT)
        walk = Walk(page, server, run_dir, store, pictures)
        mlflow_pages(walk)
        report_page(walk)
        playground_page(walk)
        comparison_page(walk, other, out)
        browser.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--other", type=Path, required=True, help="a run to compare with")
    parser.add_argument("--out", type=Path, default=Path("compare.html"))
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    given = parser.parse_args()
    walk_through(given.run_dir, given.other, given.out, given.pictures)


if __name__ == "__main__":
    main()
