"""Fifteen things, each with a shape and a make of its own; colour, proportions and details vary."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from miniature.pen import INK, Colour, Pen, oval, shade, vary

PALETTE: dict[str, Colour] = {
    "red": (208, 38, 40),
    "orange": (238, 126, 30),
    "yellow": (250, 206, 44),
    "green": (44, 142, 66),
    "blue": (38, 92, 200),
    "purple": (128, 62, 176),
    "pink": (240, 116, 168),
    "white": (242, 242, 240),
    "grey": (140, 142, 150),
    "black": (50, 48, 54),
    "brown": (132, 84, 48),
}
GLASS: Colour = (178, 218, 240)
WHITE: Colour = (250, 250, 246)
GOLD: Colour = (250, 206, 70)

Draw = Callable[[Pen, Random, Colour], None]


@dataclass(frozen=True)
class Thing:
    """How one thing is drawn: its usual colours (names of `PALETTE`), and how far it may tilt in degrees."""

    draw: Draw
    colours: tuple[str, ...]
    tilt: float = 8.0
    stands: bool = True
    """Whether it stands on something, and so gets a shadow at its foot."""
    scale: float = 1.0
    """Its extent over the usual, so that slender things cover about as much as stout ones."""


def _car(pen: Pen, rng: Random, paint: Colour) -> None:
    roof = rng.uniform(0.42, 0.52)
    pen.polygon([(-0.62, -0.02), (-0.38, -roof), (0.3, -roof), (0.66, -0.02)], shade(paint, 0.9))
    pen.polygon([(-0.5, -0.04), (-0.33, 0.08 - roof), (-0.07, 0.08 - roof), (-0.07, -0.04)], GLASS)
    pen.polygon([(0.04, -0.04), (0.04, 0.08 - roof), (0.25, 0.08 - roof), (0.5, -0.04)], GLASS)
    pen.polygon([(-0.98, 0.02), (-0.9, -0.06), (0.8, -0.06), (0.98, 0.08), (0.98, 0.34), (-0.98, 0.34)], paint)
    pen.box(-0.98, 0.24, 0.98, 0.34, shade(paint, 0.7))
    pen.oval(0.9, 0.1, 0.07, 0.08, GOLD)
    for x in (-0.54, 0.54):
        pen.oval(x, 0.34, 0.25, 0.25, INK)
        pen.oval(x, 0.34, 0.11, 0.11, (190, 190, 196))


def _bus(pen: Pen, rng: Random, paint: Colour) -> None:
    pen.polygon([(-0.98, -0.5), (-0.9, -0.58), (0.9, -0.58), (0.98, -0.5), (0.98, 0.46), (-0.98, 0.46)], paint)
    pen.box(-0.98, 0.12, 0.98, 0.2, shade(paint, 0.55))
    for left in (-0.88, -0.5, -0.12, 0.26):
        pen.box(left, -0.42, left + 0.3, 0.02, (70, 96, 122))
    pen.box(0.66, -0.42, 0.9, 0.4, GLASS)
    for x in (-0.58, 0.46):
        pen.oval(x, 0.46, 0.2, 0.2, INK)
        pen.oval(x, 0.46, 0.08, 0.08, (200, 200, 204))
    if rng.random() < 0.5:
        pen.box(-0.7, -0.68, 0.5, -0.58, shade(paint, 0.8))


def _boat(pen: Pen, rng: Random, paint: Colour) -> None:
    sail = vary(rng, rng.choice([WHITE, WHITE, (250, 236, 200)]), tone=0.03)
    pen.line([(0.02, -0.98), (0.02, 0.4)], 0.08, (96, 62, 36))
    pen.polygon([(0.1, -0.92), (0.1, 0.28), (0.84, 0.28)], sail)
    pen.polygon([(-0.06, -0.7), (-0.06, 0.28), (-0.62, 0.28)], shade(sail, 0.86))
    pen.polygon([(-0.98, 0.38), (0.98, 0.38), (0.66, 0.86), (-0.7, 0.86)], paint)
    pen.polygon([(-0.98, 0.38), (0.98, 0.38), (0.92, 0.5), (-0.92, 0.5)], shade(paint, 1.5))


def _house(pen: Pen, rng: Random, paint: Colour) -> None:
    plaster = vary(rng, rng.choice([(240, 226, 190), (246, 240, 226), (226, 196, 150)]), tone=0.05)
    pen.box(0.34, -0.84, 0.58, -0.3, shade(paint, 0.6))
    pen.box(-0.74, -0.16, 0.74, 0.92, plaster)
    pen.polygon([(-0.98, -0.1), (0, -0.94), (0.98, -0.1)], paint)
    pen.line([(-0.92, -0.12), (0.92, -0.12)], 0.07, shade(paint, 0.65))
    pen.box(-0.16, 0.34, 0.2, 0.92, (108, 66, 40))
    for x in (-0.48, 0.5):
        pen.box(x - 0.19, 0.14, x + 0.17, 0.52, (70, 62, 60))
        pen.box(x - 0.15, 0.18, x - 0.03, 0.48, (150, 200, 232))
        pen.box(x + 0.01, 0.18, x + 0.13, 0.48, (150, 200, 232))


def _tree(pen: Pen, rng: Random, paint: Colour) -> None:
    pen.polygon([(-0.13, 0.98), (-0.09, 0.1), (0.09, 0.1), (0.15, 0.98)], (112, 74, 40))
    pen.line([(0.0, 0.5), (0.3, 0.16)], 0.1, (112, 74, 40))
    crowns = [(-0.44, -0.06, 0.44), (0.46, -0.04, 0.42), (0.0, -0.42, 0.54), (-0.28, -0.5, 0.36), (0.32, -0.46, 0.36)]
    for x, y, radius in crowns:
        pen.oval(x, y, radius, radius * 0.92, shade(paint, 0.78))
    for x, y, radius in crowns:
        pen.oval(x - 0.07, y - 0.08, radius * 0.72, radius * 0.66, paint)
    for _ in range(14):
        pen.oval(rng.uniform(-0.6, 0.55), rng.uniform(-0.75, 0.15), 0.07, 0.06, shade(paint, rng.choice([0.7, 1.3])))


def _balloon(pen: Pen, rng: Random, paint: Colour) -> None:
    sway = rng.uniform(-0.2, 0.2)
    pen.line([(0, 0.4), (sway, 0.62), (-sway, 0.8), (sway / 2, 0.98)], 0.07, (236, 232, 226))
    pen.polygon([(0, 0.34), (-0.13, 0.52), (0.13, 0.52)], shade(paint, 0.7))
    pen.oval(0, -0.26, 0.6, 0.7, paint)
    pen.polygon(
        [*oval(0, -0.26, 0.6, 0.7, start=-40, end=110), *oval(-0.1, -0.3, 0.56, 0.64, start=110, end=-40)], shade(paint, 0.8)
    )
    pen.oval(-0.24, -0.54, 0.1, 0.17, shade(paint, 1.7), turn=24)


def _flower(pen: Pen, rng: Random, paint: Colour) -> None:
    stem: Colour = (58, 134, 52)
    pen.line([(0, -0.1), (0.04, 0.5), (0, 0.96)], 0.1, stem)
    pen.polygon(oval(0.26, 0.6, 0.28, 0.1, turn=-32), stem)
    pen.polygon(oval(-0.24, 0.74, 0.26, 0.1, turn=32), shade(stem, 0.85))
    petals, turn = rng.choice([5, 6, 7]), rng.uniform(0, 60)
    for petal in range(petals):
        angle = math.radians(turn + 360 * petal / petals)
        tone = 0.86 if petal % 2 else 1.0
        pen.oval(
            0.36 * math.cos(angle), -0.36 + 0.36 * math.sin(angle), 0.29, 0.2, shade(paint, tone), turn=math.degrees(angle)
        )
    pen.oval(0, -0.36, 0.19, 0.19, (246, 190, 40))
    pen.oval(0.02, -0.34, 0.1, 0.1, (190, 118, 30))


def _fish(pen: Pen, rng: Random, paint: Colour) -> None:
    fin = shade(paint, 0.72)
    pen.polygon([(-0.42, 0), (-0.96, -0.46), (-0.82, 0), (-0.96, 0.46)], fin)
    pen.polygon([(-0.3, -0.3), (0.04, -0.74), (0.36, -0.34)], fin)
    pen.polygon([(-0.1, 0.34), (-0.02, 0.64), (0.26, 0.34)], fin)
    pen.oval(0.2, 0, 0.74, 0.44, paint)
    for x, half in ((-0.12, 0.34), (0.2, 0.4)):
        pen.polygon([(x - 0.07, -half), (x + 0.07, -half), (x + 0.13, 0), (x + 0.07, half), (x - 0.07, half), (x, 0)], WHITE)
    pen.oval(0.64, -0.1, 0.12, 0.12, WHITE)
    pen.oval(0.67, -0.1, 0.06, 0.06, INK)
    pen.line([(0.46, -0.26), (0.5, 0), (0.44, 0.26)], 0.04, fin)


def _cat(pen: Pen, rng: Random, paint: Colour) -> None:
    dark = shade(paint, 0.7)
    pen.line([(0.3, 0.8), (0.8, 0.78), (0.88, 0.4), (0.74, 0.16)], 0.17, dark)
    pen.oval(0, 0.5, 0.5, 0.48, paint)
    pen.oval(0, 0.62, 0.24, 0.32, shade(paint, 1.5))
    for x in (-0.24, 0.24):
        pen.oval(x, 0.9, 0.18, 0.1, shade(paint, 1.25))
    for side in (-1, 1):
        pen.polygon([(side * 0.52, -0.98), (side * 0.56, -0.3), (side * 0.08, -0.58)], paint)
        pen.polygon([(side * 0.46, -0.8), (side * 0.48, -0.46), (side * 0.2, -0.58)], (240, 160, 160))
    pen.oval(0, -0.26, 0.58, 0.46, paint)
    for x in (-0.16, 0, 0.16):
        pen.line([(x, -0.68), (x * 0.8, -0.5)], 0.07, dark)
    for x in (-0.24, 0.24):
        pen.oval(x, -0.3, 0.13, 0.14, rng.choice([(190, 226, 90), (246, 214, 80)]))
        pen.oval(x, -0.3, 0.05, 0.12, INK)
    pen.oval(0, -0.04, 0.2, 0.13, shade(paint, 1.6))
    pen.polygon([(-0.08, -0.14), (0.08, -0.14), (0, -0.04)], (222, 110, 120))


def _mushroom(pen: Pen, rng: Random, paint: Colour) -> None:
    pen.polygon([(-0.2, -0.1), (0.2, -0.1), (0.34, 0.9), (-0.34, 0.9)], (240, 228, 204))
    pen.oval(0, 0.9, 0.34, 0.09, (222, 206, 178))
    pen.polygon([(-0.3, 0.22), (0.3, 0.22), (0.24, 0.34), (-0.24, 0.34)], (214, 198, 168))
    pen.oval(0, 0.08, 0.94, 0.14, shade(paint, 0.6))
    pen.polygon(oval(0, 0.06, 0.96, 0.94, start=180, end=360), paint)
    shift = rng.uniform(-0.08, 0.08)
    for x, y, radius in (
        (-0.62, -0.16, 0.11),
        (-0.28, -0.5, 0.15),
        (0.2, -0.26, 0.17),
        (0.42, -0.58, 0.1),
        (0.72, -0.14, 0.09),
    ):
        pen.oval(x + shift, y, radius, radius * 0.85, WHITE)


def _banana(pen: Pen, rng: Random, paint: Colour) -> None:
    bend = rng.uniform(0.3, 0.42)
    outer = oval(0, -0.5, 0.98, 1.16, start=8, end=172)
    inner = oval(0, -0.52, 0.9, 1.16 - bend - 0.26, start=172, end=8)
    pen.polygon([*outer, *inner], paint)
    pen.line(oval(0, -0.51, 0.93, 1.16 - bend / 2 - 0.1, start=24, end=156), 0.06, shade(paint, 0.78))
    pen.line([(0.93, -0.34), (0.97, -0.56)], 0.15, (112, 90, 30))
    pen.line([(-0.93, -0.38), (-0.94, -0.4)], 0.12, (84, 64, 30))


def _umbrella(pen: Pen, rng: Random, paint: Colour) -> None:
    other = shade(paint, 1.75) if rng.random() < 0.7 else shade(paint, 0.6)
    pen.line([(0, -0.9), (0, 0.78), (0.1, 0.92), (0.26, 0.88), (0.3, 0.74)], 0.09, (86, 60, 44))
    edges = [-0.98, -0.6, -0.2, 0.2, 0.6, 0.98]
    for index, (left, right) in enumerate(pairwise(edges)):
        top = [(right * f, -0.02 - 0.84 * math.sqrt(max(0.0, 1 - f * f))) for f in (1, 0.9, 0.72, 0.5, 0.25, 0)]
        back = [(left * f, y) for (_, y), f in zip(reversed(top), (0, 0.25, 0.5, 0.72, 0.9, 1), strict=True)]
        scallop = oval((left + right) / 2, -0.02, (right - left) / 2, 0.13, start=180, end=360)
        pen.polygon([*top, *back, *scallop], other if index % 2 else paint)
    pen.line([(0, -0.86), (0, -0.97)], 0.08, INK)


def _clock(pen: Pen, rng: Random, paint: Colour) -> None:
    for side in (-1, 1):
        pen.oval(side * 0.52, -0.78, 0.24, 0.18, shade(paint, 0.8), turn=side * 38)
        pen.line([(side * 0.46, 0.66), (side * 0.64, 0.94)], 0.14, shade(paint, 0.6))
    pen.oval(0, 0, 0.86, 0.86, paint)
    pen.oval(0, 0, 0.68, 0.68, WHITE)
    for hour in range(12):
        angle = math.radians(30 * hour)
        x, y = math.cos(angle), math.sin(angle)
        pen.line([(0.52 * x, 0.52 * y), (0.6 * x, 0.6 * y)], 0.07 if hour % 3 else 0.12, INK)
    for length, width in ((0.34, 0.11), (0.5, 0.08)):
        angle = rng.uniform(0, 2 * math.pi)
        pen.line([(0, 0), (length * math.cos(angle), length * math.sin(angle))], width, INK)
    pen.oval(0, 0, 0.08, 0.08, (200, 40, 40))


def _butterfly(pen: Pen, rng: Random, paint: Colour) -> None:
    spot = rng.choice([WHITE, GOLD])
    for side in (-1, 1):
        for x, y, rx, ry, turn in ((0.5, -0.36, 0.56, 0.38, -38), (0.42, 0.42, 0.44, 0.32, 44)):
            pen.oval(side * x, y, rx, ry, INK, turn=side * turn)
            pen.oval(side * x, y, rx * 0.8, ry * 0.74, paint, turn=side * turn)
            pen.oval(side * (x + 0.14), y * 1.25, rx * 0.24, ry * 0.28, spot)
        pen.line([(0, -0.5), (side * 0.2, -0.9)], 0.05, INK)
    pen.oval(0, 0.04, 0.1, 0.6, (60, 42, 36))


def _traffic_light(pen: Pen, rng: Random, paint: Colour) -> None:
    pen.box(-0.08, 0.4, 0.08, 0.98, (96, 98, 104))
    pen.box(-0.26, 0.9, 0.26, 0.98, (96, 98, 104))
    pen.polygon([(-0.4, -0.9), (-0.32, -0.98), (0.32, -0.98), (0.4, -0.9), (0.4, 0.5), (-0.4, 0.5)], paint)
    lit = rng.randrange(3)
    for lamp, (y, colour) in enumerate(((-0.7, (240, 40, 36)), (-0.24, (250, 190, 30)), (0.22, (50, 210, 90)))):
        for side in (-1, 1):
            pen.polygon([(side * 0.4, y - 0.16), (side * 0.62, y - 0.2), (side * 0.4, y + 0.1)], shade(paint, 0.8))
        pen.oval(0, y, 0.21, 0.21, shade(colour, 1.25) if lamp == lit else shade(colour, 0.62))


DRAWINGS: dict[str, Thing] = {
    "car": Thing(_car, ("red", "red", "blue"), scale=1.25),
    "bus": Thing(_bus, ("yellow", "yellow", "orange"), scale=1.1),
    "boat": Thing(_boat, ("brown", "brown", "red"), scale=1.05),
    "house": Thing(_house, ("red", "brown"), tilt=4),
    "tree": Thing(_tree, ("green",), tilt=6),
    "balloon": Thing(_balloon, ("pink", "purple", "pink"), tilt=16, stands=False, scale=1.15),
    "flower": Thing(_flower, ("pink", "white"), tilt=14, scale=1.15),
    "fish": Thing(_fish, ("orange", "orange", "blue"), tilt=24, stands=False, scale=1.2),
    "cat": Thing(_cat, ("grey", "black"), tilt=6),
    "mushroom": Thing(_mushroom, ("red",), tilt=10),
    "banana": Thing(_banana, ("yellow",), tilt=60, stands=False, scale=1.25),
    "umbrella": Thing(_umbrella, ("blue", "blue", "purple"), tilt=20, stands=False, scale=1.2),
    "clock": Thing(_clock, ("grey", "brown"), tilt=10),
    "butterfly": Thing(_butterfly, ("blue", "orange", "blue"), tilt=35, stands=False, scale=1.1),
    "traffic light": Thing(_traffic_light, ("black",), tilt=4, scale=1.15),
}
"""Thing name to how it is drawn."""
