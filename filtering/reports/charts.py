"""Charts as inline SVG: no script, no font, no picture file. Their colours are CSS variables of the page around them."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 42

Point = tuple[float, float]
MOST_POINTS = 400
"""Of a line: more would not be seen."""
Chart = Markup
"""SVG, which a page shows as it is."""


def histogram(before: Sequence[int], after: Sequence[int], *, axis: str, label: str, first: int = 0) -> Chart:
    """Two histograms, one in front of the other: entry i counts what has size i. `before` may be empty.

    Entries from the size on that 99.5 % do not exceed are added up in a last bar, with "+" behind its number.
    """
    front, behind = list(after), list(before) or [0] * len(after)
    last = min(_reaches(behind if before else front, 0.995), len(front) - 1)
    last = max(last, first + 1)
    front, behind = ([*values[first:last], sum(values[last:])] for values in (front, behind))
    top = _round_up(max(1, *front, *behind))
    step = (WIDTH - LEFT - RIGHT) / len(front)
    bars = []
    for name, values in (("before", behind), ("after", front)):
        bars += [
            f'<rect class="{name}" x="{LEFT + (at + 0.08) * step:.1f}" y="{_y(value / top):.1f}" width="{step * 0.84:.1f}" '
            f'height="{_y(0) - _y(value / top):.1f}"/>'
            for at, value in enumerate(values)
            if value
        ]
    every = max(1, math.ceil(len(front) / 12))
    every = next((nice for nice in (1, 2, 5, 10, 20) if nice >= every), every)
    marks = [
        (LEFT + (at + 0.5) * step, f"{first + at}" + ("+" if at == len(front) - 1 else ""))
        for at in range(len(front))
        if at == len(front) - 1 or ((first + at) % every == 0 and at + every / 2 < len(front))
    ]
    return _frame(bars, marks, [(_y(share), _short(top * share)) for share in (0, 0.25, 0.5, 0.75, 1)], axis, label)


def ranks(curve: Sequence[Point], dots: Sequence[Point], limit: float | None, *, axis: str, label: str) -> Chart:
    """Count by rank on logarithmic scales: a line, dots, and perhaps a dashed limit."""
    most = max([1.0, *(count for _, count in (*curve, *dots)), limit or 1.0])
    farthest = max([2.0, *(rank for rank, _ in (*curve, *dots))])
    decades, width = math.log10(most) * 1.03 or 1.0, math.log10(farthest)

    def at(rank: float, count: float) -> Point:
        return LEFT + math.log10(rank) / width * (WIDTH - LEFT - RIGHT), _y(math.log10(max(count, 1)) / decades)

    shapes = []
    if curve:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        shapes.append(f'<polyline class="line" points="{path}"/>')
    shapes += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in (at(*point) for point in dots)]
    if limit is not None:
        _, y = at(1, limit)
        shapes.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    marks = [(at(10**power, 1)[0], _short(10**power)) for power in range(int(width) + 1)]
    levels = [(at(1, 10**power)[1], _short(10**power)) for power in range(int(decades) + 1)]
    return _frame(shapes, marks, levels, axis, label)


def curves(series: Sequence[tuple[int, Sequence[Point]]], *, axis: str, label: str) -> Chart:
    """Lines over one pair of linear scales, each with the number of its colour; long ones are thinned out."""
    points = [point for _, some in series for point in some]
    right = max([1.0, *(x for x, _ in points)])
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = (high - low) or 1.0

    def at(point: Point) -> str:
        return f"{LEFT + point[0] / right * (WIDTH - LEFT - RIGHT):.1f},{_y((point[1] - low) / room):.1f}"

    shapes = []
    for colour, some in series:
        every = math.ceil(len(some) / MOST_POINTS)
        path = " ".join(map(at, [*some[:-1:every], some[-1]]))
        shapes.append(f'<polyline class="series run{colour}" points="{path}"/>')
    marks = [(LEFT + share * (WIDTH - LEFT - RIGHT), _short(right * share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    levels = [(_y(share), _short(low + room * share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    return _frame(shapes, marks, levels, axis, label)


def _frame(
    shapes: Iterable[str], marks: Iterable[tuple[float, str]], levels: Iterable[tuple[float, str]], axis: str, label: str
) -> Chart:
    grid = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
        for y, name in levels
    ]
    ticks = [f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{name}</text>' for x, name in marks]
    title = f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axis)}</text>'
    inside = "".join([*grid, *shapes, *ticks, title])
    return Chart(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>')


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _reaches(histogram: Sequence[int], share: float) -> int:
    """The smallest size that at least `share` of all do not exceed."""
    wanted, seen = share * sum(histogram), 0
    for size, count in enumerate(histogram):
        seen += count
        if seen >= wanted:
            return size
    return len(histogram) - 1


def _round_up(value: float) -> float:
    """The next number of the form 1, 1.2, 1.6, 2, 2.4, 4, 6 or 8 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(nice * unit for nice in (1, 1.2, 1.6, 2, 2.4, 4, 6, 8, 10) if nice * unit >= value)


def _short(value: float) -> str:
    """A number in few characters: 1.2k, 30M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
