"""The contact sheet: scenes, what their captions say, what their masks hold, and what the junk looks like."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from miniature.captions import words_to_ids
from miniature.concepts import CONCEPTS
from miniature.links import plan_links
from miniature.pen import Colour
from miniature.world import MARKER, WorldConfig, scene_of

COLUMNS, ROWS = 4, 4
TILE = 148
GAP = 10
CELL = (2 * TILE + 4, TILE + 46)
MARGIN = 28
HEAD = 74
PAPER: Colour = (250, 249, 246)
TEXT: Colour = (40, 40, 46)
FAINT: Colour = (128, 128, 134)

COLOURS: dict[str, Colour] = {
    "sky": (150, 200, 245),
    "mountain": (140, 128, 158),
    "forest": (26, 92, 66),
    "wall": (170, 84, 62),
    "sea": (30, 96, 160),
    "grass": (132, 196, 72),
    "sand": (236, 212, 150),
    "road": (92, 92, 98),
    "snow": (226, 232, 244),
    "floor": (160, 112, 66),
    "car": (222, 40, 60),
    "bus": (255, 190, 0),
    "boat": (120, 60, 20),
    "house": (255, 120, 90),
    "tree": (0, 150, 70),
    "balloon": (170, 60, 220),
    "flower": (255, 120, 200),
    "fish": (255, 132, 20),
    "cat": (70, 70, 90),
    "mushroom": (190, 0, 90),
    "banana": (240, 232, 60),
    "umbrella": (60, 70, 230),
    "clock": (0, 190, 200),
    "butterfly": (110, 230, 180),
    "traffic light": (20, 20, 20),
}
"""Concept name to its colour in a mask."""


def contact_sheet(out: Path) -> Path:
    """Draw `contact_sheet.png` for the world in the folder `out`; returns its path."""
    config = WorldConfig(**json.loads((out / MARKER).read_text(encoding="utf-8"))["config"])
    width = 2 * MARGIN + COLUMNS * CELL[0] + (COLUMNS - 1) * 2 * GAP
    legend_top = MARGIN + HEAD + ROWS * (CELL[1] + GAP) + 4
    sheet = Image.new("RGB", (width, legend_top + 206), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), "The miniature world", TEXT, _font(30))
    draw.text(
        (MARGIN, MARGIN + 34),
        "A caption mentions only some of what its picture shows: the words in colour. "
        "Masks exist for the benchmarks alone; no training ever sees one.",
        FAINT,
        _font(15),
    )
    for place, index in enumerate(_varied(config)):
        column, row = place % COLUMNS, place // COLUMNS
        at = (MARGIN + column * (CELL[0] + 2 * GAP), MARGIN + HEAD + row * (CELL[1] + GAP))
        _draw_scene(sheet, config, index, at)
    _draw_legend(draw, (MARGIN, legend_top), width - 2 * MARGIN)
    _draw_junk(draw, config, (MARGIN, legend_top + 92), width - 2 * MARGIN)
    path = out / "contact_sheet.png"
    sheet.save(path, optimize=True)
    return path


def colour_masks(labels: npt.NDArray[np.uint8]) -> Image.Image:
    """A label map of concept ids [height, width] in the colours of `COLOURS`."""
    table = np.array([COLOURS[concept.name] for concept in CONCEPTS], np.uint8)
    return Image.fromarray(table[labels])


def _varied(config: WorldConfig) -> list[int]:
    """Scenes for the sheet: of the first hundred, one after another that which shows and says most that is rare so far."""
    left = {}
    for index in range(100):
        _, captioned = scene_of(config, index)
        left[index] = [*captioned.shown, *(("said", concept) for concept in captioned.mentioned)]
    seen: Counter[object] = Counter()
    chosen = []
    for _ in range(COLUMNS * ROWS):
        index = max(left, key=lambda index: sum(0.25 ** seen[item] for item in left[index]))
        seen.update(left.pop(index))
        chosen.append(index)
    return chosen


def _draw_scene(sheet: Image.Image, config: WorldConfig, index: int, at: tuple[int, int]) -> None:
    scene, captioned = scene_of(config, index)
    scale = TILE / max(scene.image.size)
    size = (round(scene.image.width * scale), round(scene.image.height * scale))
    left, top = at[0], at[1] + TILE - size[1]
    sheet.paste(scene.image.resize(size, Image.Resampling.LANCZOS), (left, top))
    sheet.paste(colour_masks(scene.labels).resize(size, Image.Resampling.NEAREST), (left + size[0] + 4, top))
    _draw_caption(ImageDraw.Draw(sheet), captioned.text, (left, at[1] + TILE + 5), CELL[0])


def _draw_caption(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], width: int) -> None:
    """The caption on up to two lines, with the words for concepts underlined in the colour of the mask."""
    font, ids = _font(15), words_to_ids()
    pattern = "|".join(sorted((re.escape(word) for word in ids), key=len, reverse=True))
    x, y = at
    for piece in re.findall(rf"(?i)\b(?:{pattern})\b|\S+?(?=\b(?:{pattern})\b)|\S+|\s+", text):
        long = draw.textlength(piece, font)
        if x + long > at[0] + width and not piece.isspace():
            x, y = at[0], y + 19
        concept = ids.get(piece.lower())
        if concept is not None:
            draw.rectangle((x - 1, y + 16, x + long, y + 19), COLOURS[CONCEPTS[concept].name])
        draw.text((x, y), piece, TEXT if concept is not None else FAINT, font)
        x += round(long)


def _draw_legend(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int) -> None:
    columns = 9
    for index, concept in enumerate(CONCEPTS):
        x, y = at[0] + index % columns * width // columns, at[1] + index // columns * 26
        draw.rectangle((x, y + 2, x + 18, y + 18), COLOURS[concept.name], outline=FAINT)
        draw.text((x + 26, y), concept.name, TEXT, _font(15))


def _draw_junk(draw: ImageDraw.ImageDraw, config: WorldConfig, at: tuple[int, int], width: int) -> None:
    """One caption of every kind of junk that can be shown by itself."""
    captions = ((link.kind, link.caption) for link in plan_links(config) if link.caption)
    examples = {kind: text for kind, text in captions if text.isascii()}  # what the built-in font can draw
    draw.text(at, f"And {config.junk:.0%} of the links carry junk:", TEXT, _font(15))
    for index, (kind, text) in enumerate(sorted(examples.items())[:6]):
        x, y = at[0] + index % 3 * width // 3, at[1] + 26 + index // 3 * 24
        draw.text((x, y), kind, TEXT, _font(14))
        draw.text((x + 68, y), text[:50], FAINT, _font(14))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
