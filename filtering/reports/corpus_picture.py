"""The report as one picture, for a README or a chat: the funnel, a caption for each of its reasons, the entity frequencies."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 40

INK, KEPT, LOST, NEXT = "#1f2933", "#2f7d6d", "#d8dee4", "#c9b27c"


def draw(path: Path, content: dict[str, Any]) -> None:
    """The funnel, a caption for each of its reasons, and the entity frequencies as one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, since workers that import the package draw nothing
    from matplotlib.figure import Figure

    kept, following = content["top_entities"][:SHOWN], content["next_in_line"][: SHOWN // 4]
    steps = 1 + len(content["funnel"])
    rows = max(len(kept) + len(following), 2 * steps + 8)
    figure = Figure(figsize=(14, 1 + 0.2 * rows), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: dict[str, Any] = figure.subplot_mosaic(
        [["funnel", "entities"], ["samples", "entities"]], width_ratios=(1.15, 1), height_ratios=(steps, 0.75 * rows - steps)
    )
    _draw_funnel(axes["funnel"], content)
    _draw_samples(axes["samples"], content)
    _draw_entities(axes["entities"], content, kept, following)
    figure.savefig(path, metadata={"Software": None})


def _draw_funnel(axes: "Axes", content: dict[str, Any]) -> None:
    links = content["links"]
    for row, step in enumerate([{"dropped": 0, "left": links}, *content["funnel"]]):
        axes.barh(row, step["left"], color=KEPT, height=0.7)
        axes.barh(row, step["dropped"], left=step["left"], color=LOST, height=0.7)
        lost = f"  −{step['dropped']:,}" if step["dropped"] else ""
        axes.text(links * 1.015, row, f"{step['left']:,}{lost}", va="center", fontsize=8.5, color=INK)
    names = ["links", *(step["rule"].replace("_", " ") for step in content["funnel"])]
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xlim(0, links * 1.25)
    _finish(axes, f"{links:,} links → {content['kept']:,} kept ({content['kept'] / links:.0%})")
    axes.invert_yaxis()


def _draw_samples(axes: "Axes", content: dict[str, Any]) -> None:
    dropped = content["samples"]["dropped"]
    each = max(1, 15 // max(1, len(dropped)))
    lines = [("kept", row["caption"]) for row in content["samples"]["kept"]]
    lines += [(reason, row["caption"]) for reason, rows in dropped.items() for row in rows[:each]]
    for row, (reason, caption) in enumerate(lines):
        color = KEPT if reason == "kept" else "#8a6d1f"
        axes.text(-0.01, row, reason.replace("_", " "), va="center", ha="right", fontsize=8.5, color=color)
        axes.text(0.01, row, _printable(caption), va="center", fontsize=8.5, color=INK, parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(lines), 8) - 0.5, -0.5)
    axes.set_yticks([])
    _finish(axes, "captions, at random")


def _draw_entities(axes: "Axes", content: dict[str, Any], kept: list[Any], following: list[Any]) -> None:
    rows = [*kept, *following]
    colors = [KEPT] * len(kept) + [NEXT] * len(following)
    axes.barh(range(len(rows)), [row["count"] for row in rows], color=colors, height=0.72)
    top = max(1, *(row["count"] for row in rows))
    for at, row in enumerate(rows):
        axes.text(row["count"] + top * 0.008, at, f"{row['count']:,}", va="center", fontsize=7.5, color=INK)
    axes.set_yticks(range(len(rows)), [row["entity"] for row in rows], fontsize=8.5)
    axes.set_xlim(0, top * 1.1)
    shown = f"{len(kept)} of " if len(kept) < content["entities"] else ""
    _finish(axes, f"captions per entity: {shown}{content['entities']} kept" + (", then the next in line" if following else ""))
    axes.invert_yaxis()


def _printable(caption: str) -> str:
    """The caption as far as the picture's width and its font go."""
    short = caption if len(caption) <= 84 else caption[:83] + "…"
    return "".join(char if ord(char) < 0x2E80 and char.isprintable() else "▯" for char in short)


def _finish(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xticks([])
    axes.margins(y=0.01)
    axes.tick_params(length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
