"""The playground's page, by Gradio, from this machine alone: nothing is sent to others, and nothing is fetched from them."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
from jinja2 import Environment

from owseg import InputError
from owseg.predict import OPACITY, Segmentation, percent
from pipelines.app.config import ConfigError
from pipelines.app.outcome import explain
from pipelines.segmenting.playground import MAX_BYTES, MAX_LETTERS, Playground
from pipelines.segmenting.results import MASK, OVERLAY, write_photo

TITLE = "Open-world segmentation"
SESSIONS = 8
"""Open pages whose results are kept; the one that is idle for longest gives way."""
HOUR = 3600
"""Seconds after which uploads, files made and results of an idle page go."""
SMALLEST_RANGE = 1e-4
"""Of a threshold's slider; scores that differ by less are all the same."""
LEGEND = Environment(autoescape=True).from_string(
    """{%- for name, share, colour in rows -%}
    <div style="display: flex; gap: 0.6em; align-items: center; padding: 0.2em">
    <span style="flex: none; width: 1em; height: 1em; border: 1px solid grey; background: {{ colour }}"></span>
    <span style="flex: 1; min-width: 0; overflow-wrap: anywhere">{{ name }}</span><span>{{ share }}</span></div>
    {%- endfor %}{{ note }}"""
)
MOVING: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
"""How a slider's events are handled: while one is answered, only the last of those that follow is kept."""
Results = dict[str, Segmentation]
"""By the names of methods."""


class Panel:
    """One method's column: its overlay, its threshold, the labels' shares, and its files."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self._number = name, number
        with gr.Column(visible=False, min_width=300) as self.column:
            self.picture = gr.Image(
                label=name, format="jpeg", interactive=False, buttons=["fullscreen"], elem_id=f"overlay-{number}"
            )
            self.threshold = gr.Slider(label=f"threshold of {name}", visible=False, elem_id=f"threshold-{number}")
            self.shares = gr.HTML(elem_id=f"shares-{number}")
            self.make = gr.Button(f"files of {name}", size="sm", elem_id=f"make-{number}")
            self.files = gr.File(label="mask, legend, overlay", visible=False, interactive=False, elem_id=f"files-{number}")

    @property
    def outputs(self) -> list[Any]:
        """What a new segmentation changes."""
        return [self.column, self.picture, self.threshold, self.shares, self.files]

    def shown(self, results: Results, opacity: float) -> list[Any]:
        """Updates of `outputs`."""
        result = results.get(self.name)
        hidden = gr.update(visible=False)
        if result is None:
            return [hidden, None, hidden, None, hidden]
        slider = hidden
        if result.threshold is not None:
            least, most, step = slider_range(result, result.threshold)
            slider = gr.update(visible=True, minimum=least, maximum=most, step=step, value=result.threshold)
        return [gr.update(visible=True), result.drawn(opacity=opacity), slider, _shares(result), hidden]

    def moved(self, results: Results | None, opacity: float, threshold: float) -> list[Any]:
        """Updates of picture and shares when a slider moves: the scores are known, no model runs."""
        result = self._at(results, threshold)
        return [gr.skip(), gr.skip()] if result is None else [result.drawn(opacity=opacity), _shares(result)]

    def written(self, results: Results | None, threshold: float, photo: str, folder: Path) -> Any:
        """The update of the files: what `segment` writes of the photo, below a folder."""
        result = self._at(results, threshold)
        if result is None:
            raise InputError("photo: there is nothing yet to write; press Segment first")
        stem = folder / str(self._number) / Path(photo or "photo").stem
        write_photo(result, stem, {"image": Path(photo or "photo").name, "model": self.name})
        paths = [stem.with_name(stem.name + end) for end in (MASK, ".json", OVERLAY)]
        return gr.update(visible=True, value=[str(path) for path in paths])

    def _at(self, results: Results | None, threshold: float) -> Segmentation | None:
        result = (results or {}).get(self.name)
        return result and result.at(threshold)


@contextmanager
def served(playground: Playground, *, host: str, port: int, open_browser: bool) -> Iterator[str]:
    """Within the block the page is there, at the address that is yielded. Raises ConfigError where it cannot be.

    Uploads and files made lie in a temporary folder that goes with the block.
    """
    with tempfile.TemporaryDirectory(prefix="owseg-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it is up, and a proxy would not know
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), host]))
        page = build(playground, Path(folder) / "made")
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or None,
                inbrowser=open_browser,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_BYTES,
                state_session_capacity=SESSIONS,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"--host, --port: no page at {host}:{port or 'any port'} ({error}); choose others") from error
        try:
            yield str(address)
        finally:
            page.close(verbose=False)


def build(playground: Playground, made: Path) -> gr.Blocks:
    """The page; files that a visitor asks for are made below the folder `made`."""
    names = [*playground.choices]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR // 6, HOUR)) as page:
        results = gr.State(None, time_to_live=HOUR)
        with gr.Row():
            with gr.Column(min_width=300):
                photo = gr.Image(label="photo", sources=["upload", "clipboard"], height=320, elem_id="photo")
                photo.preprocess = lambda dropped: dropped and dropped.path  # Gradio would turn it and encode it anew
            with gr.Column(min_width=300):
                labels = gr.Textbox(
                    label="labels", placeholder="cat, wooden table, sky", max_length=MAX_LETTERS, elem_id="labels"
                )
                background = gr.Checkbox(True, label="what fits no label is nothing", elem_id="background")
                methods = gr.CheckboxGroup(
                    names, value=playground.first, label="methods", visible=len(names) > 1, elem_id="methods"
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                opacity = gr.Slider(0, 1, OPACITY, step=0.01, label="opacity", elem_id="opacity")
        with gr.Row():
            panels = [Panel(name, number) for number, name in enumerate(names)]
        thresholds = [panel.threshold for panel in panels]

        def segment(photo: str | None, text: str, background: bool, chosen: list[str], opacity: float) -> list[Any]:
            found = playground.segment(photo, text, chosen, background=background)
            return [found, *(update for panel in panels for update in panel.shown(found, opacity))]

        def faded(found: Results | None, opacity: float, *at: float) -> list[Any]:
            return [panel.moved(found, opacity, threshold)[0] for panel, threshold in zip(panels, at, strict=True)]

        given = [photo, labels, background, methods, opacity]
        outputs = [results, *(output for panel in panels for output in panel.outputs)]
        for asked in (button.click, labels.submit):
            asked(_told(segment), given, outputs, api_visibility="private", show_progress_on=photo)
        opacity.input(_told(faded), [results, opacity, *thresholds], [panel.picture for panel in panels], **MOVING)
        for panel in panels:
            moved = [results, opacity, panel.threshold]
            panel.threshold.input(_told(panel.moved), moved, [panel.picture, panel.shares], **MOVING)
            written = _told(partial(panel.written, folder=made))
            panel.make.click(written, [results, panel.threshold, photo], panel.files, api_visibility="private")
    return page


def slider_range(result: Segmentation, threshold: float) -> tuple[float, float, float]:
    """The lowest and the highest threshold that change anything, the method's own between them, and a step: round numbers."""
    least, most = min(float(result.scores.min()), threshold), max(float(result.scores.max()), threshold)
    digits = 2 - math.floor(math.log10(max(most - least, SMALLEST_RANGE)))
    step = 10.0**-digits
    return round(math.floor(least / step) * step, digits), round(math.ceil(most / step) * step, digits), step


def _shares(result: Segmentation) -> str:
    """The legend: each label's colour and share of the photo, the largest first, as HTML in which labels are text."""
    shares = sorted(zip(result.shares().items(), result.colours.tolist(), strict=True), key=lambda row: -row[0][1])
    rows = [(name, percent(share), f"rgb{(*colour,)}") for (name, share), colour in shares]
    nothing = [("(nothing)", percent(result.nothing), "transparent")] if result.nothing else []
    return LEGEND.render(rows=[*rows, *nothing], note=result.why_nothing())


def _told(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, whose mistakes are a line on the page, where all else stays as it is."""

    @wraps(work)
    def told(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:
            if (message := explain(error)) is None:
                raise
            gr.Warning(message, title="This cannot be done")
            return gr.skip()

    return told
