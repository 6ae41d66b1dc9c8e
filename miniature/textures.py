"""Textures of the stuff: large tiles, made once per process, out of which every scene cuts its own piece."""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

TILE = (640, 400)
"""Width and height of a tile in supersampled pixels: the largest region that can be cut."""
VARIANTS = 3

Field = npt.NDArray[np.float64]
Colour = tuple[int, int, int]


@cache
def tiles(name: str) -> tuple[Image.Image, ...]:
    """The tiles of one stuff concept, RGB. They are the same in every world: what varies is the cut and the tint."""
    made = []
    for variant in range(VARIANTS):
        rng = np.random.default_rng([variant, *name.encode()])
        scale = 0.8 + 0.35 * variant
        pixels = _TEXTURES[name](rng, scale)
        made.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return tuple(made)


def _noise(rng: np.random.Generator, across: float, down: float) -> Field:
    """Smooth random field [height, width] of mean 0 and deviation 1; the blobs are `across` wide and `down` high."""
    width, height = TILE
    fx = np.fft.rfftfreq(width)[None, :] * across
    fy = np.fft.fftfreq(height)[:, None] * down
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) * np.exp(-2 * np.pi**2 * (fx**2 + fy**2))
    field = np.fft.irfft2(spectrum, s=(height, width))
    normal: Field = (field - field.mean()) / field.std()
    return normal


def _blend(low: Colour, high: Colour, amount: Field) -> Field:
    """From `low` where amount is 0 to `high` where it is 1, [height, width, 3]."""
    amount = np.clip(amount, 0, 1)[..., None]
    return np.asarray(low) * (1 - amount) + np.asarray(high) * amount


def _rows() -> Field:
    return np.broadcast_to(np.arange(TILE[1], dtype=np.float64)[:, None], (TILE[1], TILE[0]))


def _columns() -> Field:
    return np.broadcast_to(np.arange(TILE[0], dtype=np.float64)[None, :], (TILE[1], TILE[0]))


def _sky(rng: np.random.Generator, scale: float) -> Field:
    clear = _blend((64, 132, 222), (170, 212, 246), _rows() / 260)
    clouds = np.clip(0.55 * _noise(rng, 26 * scale, 9 * scale) + 0.25 * _noise(rng, 8, 4) - 0.35, 0, 0.9)[..., None]
    return clear * (1 - clouds) + 252 * clouds


def _mountain(rng: np.random.Generator, scale: float) -> Field:
    height = _noise(rng, 16 * scale, 20 * scale) + 0.35 * _noise(rng, 5, 6) + 0.12 * _noise(rng, 2, 2)
    light = 0.5 + 3.2 * np.gradient(height, axis=1) + 1.2 * np.gradient(height, axis=0)
    return _blend((66, 58, 84), (172, 160, 178), light)


def _forest(rng: np.random.Generator, scale: float) -> Field:
    image = Image.new("RGB", TILE, (12, 42, 32))
    draw = ImageDraw.Draw(image)
    step = 17 * scale
    for y in np.arange(-10, TILE[1] + 60, step):
        for x in np.arange(-20, TILE[0] + 20, step):
            cx, base = x + rng.uniform(-6, 6), y + rng.uniform(-5, 5)
            tall, half, light = 46 * scale * rng.uniform(0.8, 1.2), 12 * scale * rng.uniform(0.8, 1.2), rng.uniform(0.6, 1.25)
            left, right = tuple(int(c * light) for c in (26, 88, 58)), tuple(int(c * light) for c in (14, 56, 42))
            for level in (0.0, 0.28, 0.56):
                top, bottom, wide = base - tall * (0.45 + level), base - tall * level, half * (1 - 0.9 * level)
                draw.polygon([(cx, top), (cx - wide, bottom), (cx, bottom)], fill=left)
                draw.polygon([(cx, top), (cx + wide, bottom), (cx, bottom)], fill=right)
    return np.asarray(image, dtype=np.float64) + 5 * rng.standard_normal((TILE[1], TILE[0], 1))


def _wall(rng: np.random.Generator, scale: float) -> Field:
    brick_h, brick_w = round(17 * scale), round(38 * scale)
    row = (_rows() // brick_h).astype(int)
    shifted = _columns() + (row % 2) * (brick_w // 2)
    column = (shifted // brick_w).astype(int)
    tint = rng.uniform(0, 1, (row.max() + 1, column.max() + 1))[row, column]
    bricks = _blend((138, 58, 42), (196, 98, 70), tint) + 7 * _noise(rng, 1.2, 1.2)[..., None]
    mortar = (_rows() % brick_h < 2.6) | (shifted % brick_w < 2.6)
    return np.where(mortar[..., None], np.asarray((206, 194, 180)), bricks)


def _sea(rng: np.random.Generator, scale: float) -> Field:
    waves = 0.7 * _noise(rng, 16 * scale, 2.2 * scale) + 0.4 * _noise(rng, 5, 1.2)
    water = _blend((6, 58, 104), (36, 140, 160), 0.42 + 0.26 * waves)
    foam = np.clip((waves - 1.25) * 1.6, 0, 0.9)[..., None]
    return water * (1 - foam) + np.asarray((222, 240, 240)) * foam


def _grass(rng: np.random.Generator, scale: float) -> Field:
    blades = 0.8 * _noise(rng, 0.9 * scale, 5 * scale) + 0.45 * _noise(rng, 30, 22)
    return _blend((44, 104, 22), (150, 204, 66), 0.5 + 0.27 * blades)


def _sand(rng: np.random.Generator, scale: float) -> Field:
    ripples = np.sin(_rows() / (3.4 * scale) + 1.6 * _noise(rng, 30, 16)) * 0.5 + 0.5 * _noise(rng, 24, 14)
    grains = rng.standard_normal((TILE[1], TILE[0]))
    return _blend((204, 164, 96), (246, 220, 164), 0.55 + 0.18 * ripples + 0.12 * grains)


def _road(rng: np.random.Generator, scale: float) -> Field:
    grains = 0.7 * _noise(rng, 0.8 * scale, 0.8 * scale) + 0.5 * _noise(rng, 22, 22)
    return _blend((50, 50, 56), (116, 116, 122), 0.5 + 0.2 * grains)


def _snow(rng: np.random.Generator, scale: float) -> Field:
    drifts = 0.8 * _noise(rng, 22 * scale, 7 * scale) + 0.15 * rng.standard_normal((TILE[1], TILE[0]))
    return _blend((196, 212, 238), (255, 255, 255), 0.72 + 0.3 * drifts)


def _floor(rng: np.random.Generator, scale: float) -> Field:
    plank_h, plank_w = round(24 * scale), round(150 * scale)
    row = (_rows() // plank_h).astype(int)
    shifted = _columns() + rng.integers(0, plank_w, row.max() + 1)[row]
    column = (shifted // plank_w).astype(int)
    tint = rng.uniform(0, 1, (row.max() + 1, column.max() + 1))[row, column]
    grain = _noise(rng, 34 * scale, 1.1)
    planks = _blend((138, 84, 40), (206, 146, 84), 0.25 + 0.5 * tint + 0.17 * grain)
    seam = (_rows() % plank_h < 2.2) | (shifted % plank_w < 2.2)
    return np.where(seam[..., None], np.asarray((74, 42, 20)), planks)


_TEXTURES: dict[str, Callable[[np.random.Generator, float], Field]] = {
    "sky": _sky,
    "mountain": _mountain,
    "forest": _forest,
    "wall": _wall,
    "sea": _sea,
    "grass": _grass,
    "sand": _sand,
    "road": _road,
    "snow": _snow,
    "floor": _floor,
}
