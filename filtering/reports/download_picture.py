"""The download's report as one picture, for a README or a chat: what became of the links and why, sizes, hosts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from filtering.reports.corpus_picture import INK, KEPT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REASONS, HOSTS = 14, 25
COLORS = {"obtained": KEPT, "permanent": "#c8d1d9", "transient": "#d9a441", "policy": "#b8553f"}


def draw(path: Path, content: dict[str, Any]) -> None:
    """Draw the picture; the bytes of the file depend on the content alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, since workers that import the package draw nothing
    from matplotlib.figure import Figure

    reasons, hosts = content["by_reason"][:REASONS], content["hosts"]["most"]["hosts"][:HOSTS]
    left = len(reasons) + 16
    figure = Figure(figsize=(14, 1.6 + 0.2 * max(left, len(hosts))), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: dict[str, Any] = figure.subplot_mosaic(
        [["outcome", "hosts"], ["reasons", "hosts"], ["sizes", "hosts"]], height_ratios=(2, len(reasons) + 2, 9)
    )
    _draw_outcome(axes["outcome"], content)
    _draw_reasons(axes["reasons"], content, reasons)
    _draw_sizes(axes["sizes"], content["sizes"])
    _draw_hosts(axes["hosts"], hosts)
    figure.savefig(path, metadata={"Software": None})


def _draw_outcome(axes: "Axes", content: dict[str, Any]) -> None:
    links = max(1, content["links"])
    parts = {"obtained": content["obtained"], **{name: row["links"] for name, row in content["by_failure"].items()}}
    start = 0
    for name, number in parts.items():
        axes.barh(0, number, left=start, color=COLORS[name], height=0.7, label=f"{name} {number:,} ({number / links:.1%})")
        start += number
    axes.set_xlim(0, links)
    axes.set_yticks([])
    axes.legend(loc="upper left", bbox_to_anchor=(-0.01, 0), ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    _finish(axes, f"{content['links']:,} links → {content['obtained']:,} images ({content['obtained'] / links:.1%})")


def _draw_reasons(axes: "Axes", content: dict[str, Any], reasons: list[Any]) -> None:
    axes.barh(
        range(len(reasons)), [row["links"] for row in reasons], color=[COLORS[row["failure"]] for row in reasons], height=0.72
    )
    top = max([1, *(row["links"] for row in reasons)])
    for at, row in enumerate(reasons):
        note = f"{row['links']:,}  {row['share']:.1%}"
        axes.text(row["links"] + top * 0.01, at, note, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(reasons)), [row["reason"].replace("_", " ") for row in reasons], fontsize=8.5)
    axes.set_xlim(0, top * 1.2)
    shown = f", the first {len(reasons)} reasons" if len(content["by_reason"]) > len(reasons) else ""
    _finish(axes, f"why links were lost{shown}" if reasons else "no link was lost")
    axes.invert_yaxis()


def _draw_sizes(axes: "Axes", sizes: dict[str, Any]) -> None:
    for counts, color, label in ((sizes["original"], COLORS["permanent"], "original"), (sizes["kept"], KEPT, "kept")):
        axes.bar(
            [(at + 0.5) * sizes["unit"] for at in range(len(counts))],
            counts,
            width=0.85 * sizes["unit"],
            color=color,
            label=label,
        )
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _finish(axes, "images by shorter side in pixels")
    axes.tick_params(labelsize=8.5, labelbottom=True, labelleft=True)


def _draw_hosts(axes: "Axes", hosts: list[Any]) -> None:
    start = [0] * len(hosts)
    for name, color in COLORS.items():
        axes.barh(range(len(hosts)), [row[name] for row in hosts], left=start, color=color, height=0.72)
        start = [at + row[name] for at, row in zip(start, hosts, strict=True)]
    top = max([1, *start])
    for at, row in enumerate(hosts):
        note = f"{row['links']:,}  {row['obtained'] / row['links']:.0%}"
        axes.text(row["links"] + top * 0.008, at, note, va="center", fontsize=7.5, color=INK)
    axes.set_yticks(range(len(hosts)), [_printable(row["host"]) for row in hosts], fontsize=8.5, parse_math=False)
    axes.set_xlim(0, top * 1.2)
    _finish(axes, "links by host, and the share obtained")
    axes.invert_yaxis()


def _printable(host: str) -> str:
    """The host as far as the picture's width and its font go."""
    short = host if len(host) <= 36 else host[:35] + "…"
    return "".join(char if ord(char) < 0x2E80 and char.isprintable() else "▯" for char in short) or "(no address)"


def _finish(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.margins(y=0.01)
    axes.tick_params(length=0, colors=INK, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)
