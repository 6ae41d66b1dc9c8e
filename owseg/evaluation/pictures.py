"""Pictures of predictions, for people who would rather look than read."""

import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from owseg.encoders import EncoderConfig
from owseg.evaluation.datasets import IGNORE, Benchmark, Item, read_image, read_label
from owseg.evaluation.protocol import EvaluateConfig, predict
from owseg.evaluation.run import foreground
from owseg.methods import Segmenter

PANEL = 320
"""Height of each of the three panels in pixels."""
MARGIN = 12
LINE = 22


def palette(classes: int) -> np.ndarray:
    """Distinct colours [classes, 3] uint8: hues by the golden ratio, so that neighbours in the list differ."""
    hues = (np.arange(classes) * 0.61803398875) % 1.0
    colours = [colorsys.hsv_to_rgb(hue, 0.65 + 0.3 * (i % 2), 0.95 - 0.25 * (i % 3 == 1)) for i, hue in enumerate(hues)]
    return (np.array(colours) * 255).astype(np.uint8)


def overlay(image: np.ndarray, label: np.ndarray, colours: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Class colours laid over an RGB image [H, W, 3]; ignored pixels stay as they are."""
    drawn = label != IGNORE
    mixed = image.astype(np.float32)
    mixed[drawn] = (1 - alpha) * mixed[drawn] + alpha * colours[label[drawn]]
    return mixed.round().astype(np.uint8)


@torch.inference_mode()
def draw_prediction(
    segmenter: Segmenter,
    benchmark: Benchmark,
    item: Item,
    config: EvaluateConfig,
    encoder: EncoderConfig,
    path: Path,
    title: str,
) -> None:
    """Write a PNG: image, true labels, prediction, and a legend of the classes that occur."""
    image = read_image(item.image)
    label = read_label(benchmark, item, image.shape[:2])
    classes = segmenter.embed_classes(foreground(benchmark))
    prediction = predict(segmenter, image, classes, benchmark.background, config, encoder.mean, encoder.std)
    colours = palette(len(benchmark.names))
    if benchmark.background:
        colours[0] = 40
    panels = [image, overlay(image, label, colours), overlay(image, prediction, colours)]
    present = sorted(set(np.unique(label)) - {IGNORE} | set(np.unique(prediction)))
    path.parent.mkdir(parents=True, exist_ok=True)
    compose(panels, ["image", "truth", "prediction"], [(benchmark.names[i], colours[i]) for i in present], title).save(path)


def compose(panels: list[np.ndarray], captions: list[str], legend: list[tuple[str, np.ndarray]], title: str) -> Image.Image:
    """Panels side by side under a title, with captions and a colour legend below."""
    font = ImageFont.load_default(14)
    scaled = [
        Image.fromarray(panel).resize((round(panel.shape[1] * PANEL / panel.shape[0]), PANEL), Image.Resampling.NEAREST)
        for panel in panels
    ]
    width = sum(panel.width for panel in scaled) + MARGIN * (len(scaled) + 1)
    rows: list[list[tuple[str, np.ndarray]]] = [[]]
    x = MARGIN
    for name, colour in legend:
        step = 30 + round(font.getlength(name))
        if x + step > width - MARGIN:
            rows.append([])
            x = MARGIN
        rows[-1].append((name, colour))
        x += step
    canvas = Image.new("RGB", (width, PANEL + LINE * (2 + len(rows)) + 3 * MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN // 2), title, fill="black", font=font)
    x = MARGIN
    for panel, caption in zip(scaled, captions, strict=True):
        canvas.paste(panel, (x, LINE + MARGIN // 2))
        draw.text((x, PANEL + LINE + MARGIN // 2 + 2), caption, fill=(90, 90, 90), font=font)
        x += panel.width + MARGIN
    for number, row in enumerate(rows):
        x, y = MARGIN, PANEL + LINE * (2 + number) + MARGIN
        for name, colour in row:
            draw.rectangle((x, y + 3, x + 12, y + 15), fill=tuple(int(value) for value in colour))
            draw.text((x + 17, y), name, fill="black", font=font)
            x += 30 + round(font.getlength(name))
    return canvas
