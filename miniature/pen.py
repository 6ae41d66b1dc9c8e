"""Vector drawing in unit coordinates: a thing is drawn once and comes out at any size, angle and side."""

import colorsys
import math
from collections.abc import Iterable
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (34, 32, 38)
MARGIN = 1.3
"""The tile's side over the drawing's, so that a tilted drawing is not cut."""


class Pen:
    """Draws on a transparent tile. The drawing spans -1..1 in x (right) and y (down), whatever its place in the picture.

    `side` is the drawing's extent in pixels, `angle` its tilt in degrees, `flip` mirrors it, `stretch` scales x against y.
    Nothing is blended: a pixel of the tile is either fully drawn or fully transparent, which makes the mask exact.
    """

    def __init__(self, side: float, *, angle: float = 0.0, flip: bool = False, stretch: float = 1.0) -> None:
        extent = max(4, round(side * MARGIN))
        self.tile = Image.new("RGBA", (extent, extent))
        self._draw = ImageDraw.Draw(self.tile)
        self._unit = side / 2
        self._centre = extent / 2
        turn = math.radians(angle)
        mirror = -stretch if flip else stretch
        self._xx, self._xy = self._unit * mirror * math.cos(turn), -self._unit * math.sin(turn) / stretch
        self._yx, self._yy = self._unit * mirror * math.sin(turn), self._unit * math.cos(turn) / stretch

    def _at(self, points: Iterable[Point]) -> list[Point]:
        centre = self._centre
        return [(centre + self._xx * x + self._xy * y, centre + self._yx * x + self._yy * y) for x, y in points]

    def polygon(self, points: Iterable[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._at(points), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, *, turn: float = 0.0) -> None:
        """Fill an ellipse, tilted by `turn` degrees."""
        self.polygon(oval(x, y, rx, ry, turn=turn), colour)

    def line(self, points: Iterable[Point], width: float, colour: Colour) -> None:
        """Draw a polyline with round ends; `width` is in units."""
        placed, pixels = self._at(points), max(1, round(width * self._unit))
        self._draw.line(placed, fill=colour, width=pixels, joint="curve")
        if pixels > 2:
            radius = pixels / 2 - 0.5
            for x, y in (placed[0], placed[-1]):
                self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def oval(x: float, y: float, rx: float, ry: float, *, start: float = 0, end: float = 360, turn: float = 0) -> list[Point]:
    """The points of an elliptic arc from `start` to `end` degrees (0 = right, 90 = down), tilted by `turn` degrees."""
    steps = max(6, round((end - start) / 14))
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = []
    for step in range(steps + 1):
        angle = math.radians(start + (end - start) * step / steps)
        dx, dy = rx * math.cos(angle), ry * math.sin(angle)
        points.append((x + dx * cos - dy * sin, y + dx * sin + dy * cos))
    return points


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1; above 1 towards white."""
    if factor <= 1:
        return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))
    white = factor - 1
    return (
        int(colour[0] + (255 - colour[0]) * white),
        int(colour[1] + (255 - colour[1]) * white),
        int(colour[2] + (255 - colour[2]) * white),
    )


def vary(rng: Random, colour: Colour, *, hue: float = 0.025, tone: float = 0.12) -> Colour:
    """A colour near the given one: the hue moves by up to `hue` of the circle, saturation and value by up to `tone`."""
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    h = (h + rng.uniform(-hue, hue)) % 1
    s = min(1.0, s * rng.uniform(1 - tone, 1 + tone))
    v = min(1.0, v * rng.uniform(1 - tone, 1 + tone))
    r, g, b = colorsys.hsv_to_rgb(h, s, v)
    return (int(r * 255), int(g * 255), int(b * 255))
