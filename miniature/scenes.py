"""Scenes: stuff in bands, paths and patches, things before it, and a label map that is exact to the pixel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from miniature.concepts import CONCEPTS, ID
from miniature.pen import Pen, Point, vary
from miniature.textures import TILE, tiles
from miniature.things import DRAWINGS, PALETTE

SUPERSAMPLING = 2
VISIBLE = 0.02
"""The share of the picture from which on a concept counts as shown, and may be mentioned."""
GROUNDS = ("sea", "grass", "sand", "road", "snow", "floor")
"""Stuff that may lie as a path or a patch within other stuff."""

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Depicted:
    """One concept of a scene, as a caption may speak of it."""

    concept: int
    share: float
    """Visible share of the picture, 0..1."""
    count: int
    """How many of it can be seen; 1 for stuff."""
    colour: str | None
    """The colour's name; None for stuff."""


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows."""

    image: Image.Image
    """RGB."""
    labels: Labels
    """Concept ids [height, width]: every pixel has one."""
    instances: Labels
    """0 for stuff, else the number of the thing [height, width]."""
    shown: tuple[Depicted, ...]
    """The concepts that cover at least `VISIBLE` of the picture."""


@dataclass(frozen=True)
class _Canvas:
    """The supersampled picture under the brush, and the final label maps under the same strokes."""

    picture: Image.Image
    labels: Labels
    instances: Labels

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.size

    def paint(self, texture: Image.Image, shape: Image.Image, at: tuple[int, int], concept: int, instance: int = 0) -> None:
        """Paint `texture` where `shape` (mode L, 0 or 255) is set. A final pixel is taken if half of it is covered."""
        self.picture.paste(texture, at, shape)
        x, y = (offset // SUPERSAMPLING for offset in at)
        covered = np.asarray(shape.reduce(SUPERSAMPLING)) >= 127
        height, width = self.labels.shape
        top, left = max(0, -y), max(0, -x)
        covered = covered[top : height - y, left : width - x]
        window = (slice(y + top, y + top + covered.shape[0]), slice(x + left, x + left + covered.shape[1]))
        self.labels[window][covered] = concept
        self.instances[window][covered] = instance


def draw_scene(
    rng: Random, size: tuple[int, int], *, must: Sequence[int] = (), choice: Sequence[int] = tuple(range(len(CONCEPTS)))
) -> Scene:
    """A random scene of `size` = (width, height) pixels. It shows the concepts `must`, and others out of `choice`."""
    width, height = size
    canvas = _Canvas(
        Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING)),
        np.zeros((height, width), np.uint8),
        np.zeros((height, width), np.uint8),
    )
    stuff_pool, thing_pool = ([c for c in choice if CONCEPTS[c].is_stuff == kind] for kind in (True, False))
    stuff_must, thing_must = ([c for c in must if CONCEPTS[c].is_stuff == kind] for kind in (True, False))
    bands = rng.choices((1, 2, 3), weights=(22, 50, 28))[0]
    _paint_stuff(canvas, rng, _pick(rng, stuff_pool, stuff_must, bands))
    kinds = rng.choices((1, 2, 3, 4), weights=(22, 38, 28, 12))[0]
    colours = _paint_things(canvas, rng, _pick(rng, thing_pool, thing_must, max(kinds, 3 - bands)))
    image = canvas.picture.reduce(SUPERSAMPLING).point(_tint(rng, 0.12, 0.05))
    shares = np.bincount(canvas.labels.ravel(), minlength=len(CONCEPTS)) / canvas.labels.size
    shown = tuple(
        Depicted(concept, float(share), len(np.unique(canvas.instances[canvas.labels == concept])), colours.get(concept))
        for concept, share in enumerate(shares)
        if share >= VISIBLE
    )
    return Scene(image, canvas.labels, canvas.instances, shown)


def _pick(rng: Random, pool: Sequence[int], must: Sequence[int], count: int) -> list[int]:
    others = [concept for concept in pool if concept not in must]
    return [*rng.sample(others, min(len(others), max(0, count - len(must)))), *must]


def _tint(rng: Random, gain: float, cast: float) -> list[int]:
    """A lookup table for an RGB picture: brightness changes by up to `gain`, each channel by up to `cast` more."""
    bright = rng.uniform(1 - gain, 1 + gain * 0.6)
    factors = [[bright * rng.uniform(1 - cast, 1 + cast)] for _ in range(3)]
    table: list[int] = np.minimum(np.rint(np.arange(256) * np.array(factors)), 255).astype(int).ravel().tolist()
    return table


# Stuff


def _paint_stuff(canvas: _Canvas, rng: Random, concepts: list[int]) -> None:
    """Far stuff first; each next one covers what lies below its upper edge, a path through it, or a patch of it."""
    rng.shuffle(concepts)
    order = sorted(concepts, key=lambda concept: min(concept, ID["sea"]))  # the grounds come in any order
    whole = Image.new("L", canvas.size, 255)
    width, height = canvas.size
    slots = len(order)
    edge = 0.0
    for slot, concept in enumerate(order):
        name = CONCEPTS[concept].name
        shape = whole
        if slot:
            previous = edge
            edge = (slot + rng.uniform(-0.22, 0.22) * 3 / slots) / slots
            shape = Image.new("L", canvas.size)
            draw = ImageDraw.Draw(shape)
            form = rng.random()
            if slot == slots - 1 and name in GROUNDS and form < 0.14:
                outline = _path(rng, previous + 0.03)
            elif slot == slots - 1 and name in GROUNDS and form < 0.26:
                outline = _patch(rng, max(previous + 0.25, 0.6))
            elif slots == 2 and form < 0.38:
                outline = [(y, x) for x, y in _band(rng, name, edge)]
            else:
                outline = _band(rng, name, edge)
            draw.polygon([(x * width, y * height) for x, y in outline], fill=255)
        canvas.paint(_cut(rng, name, canvas.size), shape, (0, 0), concept)


def _band(rng: Random, name: str, edge: float) -> list[Point]:
    """Everything below an upper edge at height `edge`, in the manner of the stuff: peaks, tree tops, a horizon, hills."""
    points: list[Point]
    if name == "mountain":
        peaks = rng.randint(2, 4)
        points = [
            (x / (2 * peaks), edge + (rng.uniform(-0.2, -0.08) if x % 2 else rng.uniform(0.0, 0.1)))
            for x in range(2 * peaks + 1)
        ]
    elif name == "forest":
        teeth = rng.randint(8, 14)
        points = [(x / (2 * teeth), edge + (rng.uniform(-0.1, -0.03) if x % 2 else 0.03)) for x in range(2 * teeth + 1)]
    else:
        tilt = rng.gauss(0, 0.05)
        swing = 0.0 if name in ("sea", "wall", "floor", "road") else rng.uniform(0.0, 0.05)
        phase, turns = rng.uniform(0, 6.28), rng.uniform(3, 9)
        points = [(x / 24, edge + tilt * (x / 12 - 1) + swing * math.sin(phase + turns * x / 24)) for x in range(25)]
    return [*points, (1.0, 1.0), (0.0, 1.0)]


def _path(rng: Random, top: float) -> list[Point]:
    """A path in perspective, from a narrow far end to the lower border."""
    far, near, narrow, wide = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.03, 0.12), rng.uniform(0.28, 0.45)
    return [(far - narrow, top), (far + narrow, top), (near + wide, 1.0), (near - wide, 1.0)]


def _patch(rng: Random, y: float) -> list[Point]:
    """An irregular round patch, such as a pond, around the height `y`."""
    x, rx, ry = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.45), rng.uniform(0.2, 0.3)
    phase, bumps = rng.uniform(0, 6.28), rng.randint(2, 4)
    points = []
    for step in range(36):
        angle = math.tau * step / 36
        radius = 1 + 0.12 * math.sin(bumps * angle + phase)
        points.append((x + rx * radius * math.cos(angle), y + ry * radius * math.sin(angle)))
    return points


def _cut(rng: Random, name: str, size: tuple[int, int]) -> Image.Image:
    """A tinted piece of the stuff's texture."""
    width, height = size
    left, top = rng.randint(0, TILE[0] - width), rng.randint(0, TILE[1] - height)
    if name == "sky":
        top = rng.randint(0, min(40, TILE[1] - height))  # it fades towards the horizon
    texture = rng.choice(tiles(name)).crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        texture = texture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    texture = texture.point(_tint(rng, 0.14, 0.06))
    if name == "road":
        _mark_lanes(rng, texture)
    return texture


def _mark_lanes(rng: Random, texture: Image.Image) -> None:
    """Paint a dashed line on a road: across the picture, or away from the viewer."""
    draw = ImageDraw.Draw(texture)
    width, height = texture.size
    paint = rng.choice([(236, 236, 228), (240, 206, 90)])
    if rng.random() < 0.5:
        y, slope = height * rng.uniform(0.55, 0.9), rng.uniform(-0.1, 0.1)
        for left in range(rng.randint(-30, 0), width, 52):
            dash = ((left, 0), (left + 28, 0), (left + 26, 6), (left - 2, 6))
            draw.polygon([(x, y + down + slope * x) for x, down in dash], fill=paint)
        return
    foot, lean = width * rng.uniform(0.3, 0.7), rng.uniform(-0.25, 0.25)
    for step in range(8):
        low, high = 0.16 * step, 0.16 * step + 0.09
        half = 5 - 0.18 * step
        ends = ((low, -half), (low, half), (high, 0.8 * half), (high, -0.8 * half))
        draw.polygon([(foot - lean * height * up + side, height * (1 - up)) for up, side in ends], fill=paint)


# Things

Box = tuple[float, float, float, float]


def _paint_things(canvas: _Canvas, rng: Random, concepts: list[int]) -> dict[int, str]:
    """Draw each concept once or, at times, a few times. Returns concept → colour."""
    rng.shuffle(concepts)
    several = rng.random() < 0.3
    counts = [rng.choice((2, 2, 3)) if several and index == 0 else 1 for index in range(len(concepts))]
    extent = (0.66, 0.62, 0.54, 0.47, 0.42, 0.38)[min(sum(counts), 6) - 1]
    placed: list[tuple[float, Box, int, float, str]] = []
    for concept, count in zip(concepts, counts, strict=True):
        colour = rng.choice(DRAWINGS[CONCEPTS[concept].name].colours)
        for _ in range(count):
            side = min(canvas.size) * extent * rng.uniform(0.82, 1.16) * DRAWINGS[CONCEPTS[concept].name].scale
            box = _place(rng, canvas.size, side, [other for _, other, *_ in placed])
            placed.append((box[3], box, concept, side, colour))
    for instance, (_, box, concept, side, colour) in enumerate(sorted(placed), start=1):
        _paint_thing(canvas, rng, concept, box, side, colour, instance)
    return {concept: colour for _, _, concept, _, colour in placed}


def _place(rng: Random, size: tuple[int, int], side: float, others: Sequence[Box]) -> Box:
    """Where to put a square of `side`: the place of eight tries that hides least of the others. Low places are likelier."""
    width, height = size
    best: tuple[float, Box] | None = None
    for _ in range(8):
        x = rng.uniform(side * 0.42, width - side * 0.42)
        low, high = side * 0.44, height - side * 0.46
        y = low + (high - low) * rng.random() ** 0.75
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        hidden = max((_overlap(box, other) for other in others), default=0.0)
        if best is None or hidden < best[0]:
            best = (hidden, box)
        if hidden < 0.12:
            break
    assert best is not None
    return best[1]


def _overlap(one: Box, other: Box) -> float:
    """Intersection over the smaller of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((one[2] - one[0]) * (one[3] - one[1]), (other[2] - other[0]) * (other[3] - other[1]))
    return max(0.0, width) * max(0.0, height) / smaller


def _paint_thing(canvas: _Canvas, rng: Random, concept: int, box: Box, side: float, colour: str, instance: int) -> None:
    thing = DRAWINGS[CONCEPTS[concept].name]
    pen = Pen(side, angle=rng.uniform(-thing.tilt, thing.tilt), flip=rng.random() < 0.5, stretch=rng.uniform(0.92, 1.08))
    thing.draw(pen, rng, vary(rng, PALETTE[colour]))
    tile = pen.tile
    # Even offsets and extents keep the tile's pixels aligned with the final ones.
    even = (tile.width + tile.width % 2, tile.height + tile.height % 2)
    tile = tile.crop((0, 0, *even))
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    at = (int(centre[0] - tile.width / 2) // 2 * 2, int(centre[1] - tile.height / 2) // 2 * 2)
    alpha = tile.getchannel("A")
    if thing.stands:
        left, _, right, foot = alpha.getbbox() or (0, 0, *even)
        _shadow(canvas, at[0] + left, at[0] + right, at[1] + foot)
    canvas.paint(_lit(tile, rng), alpha, at, concept, instance)


def _shadow(canvas: _Canvas, left: int, right: int, foot: int) -> None:
    """Darken the ground at a thing's foot, if there is any. It stays the ground's pixel."""
    height, width = canvas.labels.shape
    below = (min(foot // SUPERSAMPLING, height - 1), min(max((left + right) // (2 * SUPERSAMPLING), 0), width - 1))
    if canvas.labels[below] == ID["sky"]:
        return
    high = max(4, (right - left) // 9)
    shape = Image.new("L", (right - left, 2 * high))
    ImageDraw.Draw(shape).ellipse((0, 0, right - left - 1, 2 * high - 1), fill=70)
    canvas.picture.paste((20, 20, 30), (left, foot - high - high // 3), shape)


def _lit(tile: Image.Image, rng: Random) -> Image.Image:
    """The tile under a light from one side, as RGB."""
    light = np.linspace(rng.uniform(1.02, 1.14), rng.uniform(0.84, 0.96), tile.height, dtype=np.float32)[:, None]
    side = np.linspace(-0.08, 0.08, tile.width, dtype=np.float32)[None, :] * rng.choice((-1, 1))
    pixels = np.asarray(tile.convert("RGB"), dtype=np.float32) * (light + side)[..., None]
    return Image.fromarray(np.minimum(pixels, 255).astype(np.uint8))
