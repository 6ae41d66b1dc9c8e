"""Pictures of predictions, for people who would rather look than read."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from owseg.evaluation.datasets import IGNORE, Item, read_image, read_label
from owseg.evaluation.inference import predict
from owseg.evaluation.protocols import Protocol
from owseg.evaluation.scoring import Score, threshold_sweep
from owseg.normalisation import Normalisation
from owseg.segmenter import Segmenter

Legend = list[tuple[str, np.ndarray | None]]
"""Names and their colours [3] uint8; None = the pixels are as they were, and an empty box stands for them."""

IMAGE_KEY = "image"
"""In a picture's PNG: the id of the image that it shows."""
PANEL = 320
"""Height of each of the three panels in pixels ..."""
MOST_NAMED = 60
"""Classes up to which a confusion's rows and columns are named."""
PANORAMA = 8 * PANEL
"""... unless it would be wider than this."""
ALPHA = 0.6
"""How much of a pixel is its class's colour."""
GREY = 128
"""What a legend's colours are laid over, as the photo's are: they look as they do there."""
MARGIN = 12
LINE = 22
NAME = 60
"""Characters after which a name in a legend is cut."""
SMALLEST_TEXT, LARGEST_TEXT = 9, 32
"""Sizes in pixels of the text of a legend inside of a picture."""


def palette(classes: int) -> np.ndarray:
    """Distinct colours [classes, 3] uint8: hues by the golden ratio, so that neighbours in the list differ."""
    hues = (np.arange(classes) * 0.61803398875) % 1.0
    colours = [colorsys.hsv_to_rgb(hue, 0.65 + 0.3 * (i % 2), 0.95 - 0.25 * (i % 3 == 1)) for i, hue in enumerate(hues)]
    return (np.array(colours) * 255).astype(np.uint8)


def overlay(
    image: np.ndarray, label: np.ndarray, colours: np.ndarray, alpha: float = ALPHA, *, ignore: int = IGNORE
) -> np.ndarray:
    """Class colours laid over an RGB image [H, W, 3]; pixels whose label is `ignore` stay as they are."""
    drawn = label != ignore
    mixed = image.astype(np.float32)
    mixed[drawn] = (1 - alpha) * mixed[drawn] + alpha * colours[label[drawn]]
    return mixed.round().astype(np.uint8)


@torch.inference_mode()
def draw_prediction(
    segmenter: Segmenter,
    protocol: Protocol,
    item: Item,
    classes: Tensor,
    normalisation: Normalisation,
    path: Path,
    title: str,
) -> None:
    """Write a PNG: image, true labels, prediction, and a legend of the classes that occur."""
    benchmark = protocol.benchmark
    image = read_image(item.image)
    label = read_label(benchmark, item, (image.shape[0], image.shape[1]))
    prediction = predict(segmenter, image, classes, protocol, normalisation).labels
    colours = palette(len(benchmark.names))
    if benchmark.background:
        colours[0] = 40
    panels = [image, overlay(image, label, colours), overlay(image, prediction, colours)]
    present = sorted(set(np.unique(label)) - {IGNORE} | set(np.unique(prediction)))
    path.parent.mkdir(parents=True, exist_ok=True)
    legend: Legend = [(benchmark.names[i], colours[i]) for i in present]
    about = PngInfo()
    about.add_itxt(IMAGE_KEY, item.id)
    compose(panels, ["image", "truth", "prediction"], legend, title).save(path, pnginfo=about)


def draw_sweep(scores: Mapping[str, Score], path: Path, title: str) -> None:
    """Write a PNG: mIoU over the background threshold, a curve for each benchmark, with the threshold that was used marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="background threshold", ylabel="mIoU (%)")
    figure.suptitle(title, fontsize="small", wrap=True)
    for dataset, score in scores.items():
        curve = threshold_sweep(score).curve
        (line,) = axes.plot(list(curve), list(curve.values()), label=dataset)
        if score.threshold is not None:
            axes.plot(score.threshold, curve[score.threshold], "o", color=line.get_color())
    axes.legend(title="dots: the threshold in use")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_confusion(counts: np.ndarray, names: Sequence[str], path: Path, title: str) -> None:
    """Write a PNG of a confusion [n, n] of pixels (rows = label): each cell is the share of its row, from white to black."""
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.0, min(12.0, 0.22 * len(names) + 1.6))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="prediction", ylabel="label")
    axes.set_title(title, fontsize="small", wrap=True)
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= MOST_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def compose(panels: list[np.ndarray], captions: list[str], legend: Legend, title: str) -> Image.Image:
    """Panels of one size side by side under a title, with captions and a colour legend below."""
    font = ImageFont.load_default(14)
    height, width = panels[0].shape[:2]
    scale = min(PANEL / height, PANORAMA / width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    scaled = [Image.fromarray(panel).resize(size, Image.Resampling.NEAREST) for panel in panels]
    width = sum(panel.width for panel in scaled) + MARGIN * (len(scaled) + 1)
    top = LINE + MARGIN // 2
    bottom = top + size[1]
    canvas = Image.new("RGB", (width, bottom + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN // 2), title, fill="black", font=font)
    x = MARGIN
    for panel, caption in zip(scaled, captions, strict=True):
        canvas.paste(panel, (x, top))
        draw.text((x, bottom + 2), caption, fill=(90, 90, 90), font=font)
        x += panel.width + MARGIN
    return legend_below(canvas, legend)


def legend_below(image: Image.Image, legend: Legend, note: str = "") -> Image.Image:
    """The image with a line or more of names and their colours below it, as wide as the longest name asks for; then a note."""
    font = ImageFont.load_default(14)
    entries = [(name if len(name) <= NAME else f"{name[: NAME - 3]}...", colour) for name, colour in legend]
    steps = [30 + round(font.getlength(name)) for name, _ in entries]
    width = max([image.width, *(2 * MARGIN + step for step in steps)])
    places: list[tuple[int, int]] = []
    x = y = MARGIN
    for step in steps:
        if x + step > width - MARGIN and x > MARGIN:
            x, y = MARGIN, y + LINE
        places.append((x, image.height + y))
        x += step
    lines = _wrapped(note, width - 2 * MARGIN, font)
    below = image.height + y + LINE
    canvas = Image.new("RGB", (width, below + LINE * len(lines) + MARGIN), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for (name, colour), (x, y) in zip(entries, places, strict=True):
        fill = None if colour is None else tuple(round((1 - ALPHA) * GREY + ALPHA * int(value)) for value in colour)
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=fill, outline=None if fill else (120, 120, 120))
        draw.text((x + 17, y), name, fill="black", font=font)
    for number, line in enumerate(lines):
        draw.text((MARGIN, below + number * LINE), line, fill="black", font=font)
    return canvas


def legend_panel(legend: Legend, width: int, height: int) -> Image.Image:
    """Names and their colours, one a line, as a panel for a corner of a picture of width x height pixels.

    It takes half of either side at most; what does not fit is counted in its last line. A picture with no room for a readable
    line gets a panel without pixels.
    """
    size = min(max(height // 32, SMALLEST_TEXT), LARGEST_TEXT)
    font, line = ImageFont.load_default(size), round(1.5 * size)
    lines = height // 2 // line
    shown = legend if len(legend) <= lines else [*legend[: max(lines - 1, 0)], (f"+{len(legend) - lines + 1} more", None)]
    names = [_fitting(name, width // 2 - 2 * line, font) for name, _ in shown]
    if lines < 1 or not all(names):
        return Image.new("RGB", (0, 0))
    panel = Image.new("RGB", (round(max(map(font.getlength, names))) + 2 * line, len(shown) * line + line // 4), "white")
    draw = ImageDraw.Draw(panel)
    for row, (name, (_, colour)) in enumerate(zip(names, shown, strict=True)):
        top = row * line + line // 4
        if colour is not None:
            draw.rectangle((line // 3, top, line // 3 + size, top + size), fill=tuple(int(value) for value in colour))
        draw.text((line // 3 + line, top + size // 2), name, fill="black", font=font, anchor="lm")
    return panel


def _fitting(name: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A name, or as much of it as a line of so many pixels holds; empty where that is nothing."""
    if font.getlength(name) <= width:
        return name
    kept = next((end for end in range(len(name), 0, -1) if font.getlength(f"{name[:end]}...") <= width), 0)
    return f"{name[:kept]}..." if kept else ""


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of words that are not wider than so many pixels, unless a word alone is."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
