"""The rows that benchmarks/gpu.py measures: how they share its time, and how they are written down."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from owseg.flops import peak_tflops

SHARES = {"losses": 0.2, "training": 0.65, "loop": 0.85, "evaluator": 1.0}
"""The part of the time, counted from the start, at which each section must end; what one leaves, the next ones have."""
Show = Callable[[dict[str, Any]], str]
OUT_OF_MEMORY = "left out: out of memory"


class Report:
    """The rows of each section, kept in a file."""

    def __init__(self, about: dict[str, Any], seconds: float, out: Path) -> None:
        self.about, self.seconds, self.out = about, seconds, out
        self.began = time.perf_counter()
        self.rows: dict[str, list[dict[str, Any]]] = {section: [] for section in SHARES}

    def share(self, section: str, rows: int) -> float:
        """Seconds for the next of `rows` rows that are left in a section; none or fewer where its time is over."""
        return (self.began + SHARES[section] * self.seconds - time.perf_counter()) / max(rows, 1)

    def add(self, section: str, row: dict[str, Any], rows: int, measure: Callable[[float], dict[str, Any]]) -> None:
        """Put what `measure(seconds)` finds into `row`, or why there is nothing, and keep it."""
        began, seconds = time.perf_counter(), self.share(section, rows)
        row["status"] = "measured"
        if seconds <= 0:
            row["status"] = "left out: no time"
        else:
            try:
                row |= measure(seconds)
            except (torch.OutOfMemoryError, MemoryError):
                row["status"] = OUT_OF_MEMORY
            except Exception as error:  # the other rows are worth having
                row["status"] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        row["seconds"] = time.perf_counter() - began
        self.rows[section].append(row)
        self.write()
        print(f"{time.perf_counter() - self.began:6.1f} s  {section}: {row}", file=sys.stderr, flush=True)

    def write(self) -> None:
        """The JSON as far as it is known."""
        found = {**self.about, "seconds": time.perf_counter() - self.began, **self.rows}
        self.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _text(key: str) -> Show:
    """Shows what a row has; a dash where it has nothing."""
    return lambda row: str(row.get(key, "–"))


def _number(key: str, form: str, times: float = 1.0) -> Show:
    """Shows a row's number; a dash where there is none."""
    return lambda row: "–" if row.get(key) is None else form.format(times * row[key])


METHOD = {"method": _text("method")}
PHASE = {**METHOD, "phase": _text("phase")}
BATCH = {**PHASE, "batch": _text("batch_size")}
RATE = {"images/s": _number("images_per_second", "{:.1f}")}
MFU = {"MFU, %": _number("mfu", "{:.1f}", 100)}
MEMORY = {"peak memory, GiB": _number("peak_memory_mb", "{:.2f}", 1 / 1024)}
LOSSES = {
    **PHASE,
    "precision": _text("precision"),
    "largest relative difference": _number("largest_difference", "{:.1e}"),
    "of": _text("of"),
}
STEP = {"s/step": _number("seconds_per_step", "{:.4f}"), "TFLOP/step": _number("tflop_per_step", "{:.4g}")}
LOADER = {"loader processes": _text("loader_workers")}
WAIT = {"data wait, %": _number("data_wait_share", "{:.1f}", 100)}
WINDOW = {"classes": _text("classes"), "window, pixels": _text("window")}
TABLES: dict[str, tuple[str, dict[str, Show]]] = {
    "losses": ("Losses and gradients against a CPU", LOSSES),
    "training": ("Training steps, bfloat16", {**BATCH, **RATE, **STEP, **MFU, **MEMORY}),
    "loop": ("Training over shards, bfloat16", {**BATCH, **LOADER, **RATE, **WAIT, **MFU, **MEMORY}),
    "evaluator": ("Evaluator, float32", {**METHOD, **WINDOW, **RATE, **MEMORY}),
}
"""Title and columns of each section; a last column says why a row has nothing."""


def tables(found: dict[str, Any]) -> str:
    """The JSON's rows as Markdown."""
    device = found["device"]
    peak = f", peak {device['peak_tflops']:g} TFLOP/s" if device["peak_tflops"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    parts = [f"{device['name']}{peak}; {versions}; commit {found['commit']}"]
    for section, (title, columns) in TABLES.items():
        lines = [[*columns, ""], ["---"] * (len(columns) + 1)]
        for row in found[section]:
            left_out = "" if row["status"] == "measured" else row["status"]
            lines.append([*(show(row) for show in columns.values()), left_out])
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def about(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures are of."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else _processor()
    packages = ("torch", "timm", "open_clip_torch", "transformers")
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    return {
        "device": {
            "name": name,
            "type": device.type,
            "memory_mb": torch.cuda.get_device_properties(device).total_memory / 2**20 if cuda else None,
            "peak_tflops": options.peak_tflops or (peak_tflops(name) if cuda else None),
            "cpu": _processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": versions | ({"cuda": torch.version.cuda} if cuda else {}),
        "commit": options.commit or _commit(),
        "toy": options.toy,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    told = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    try:
        head, changes = told(["git", "rev-parse", "HEAD"]), told(["git", "status", "--porcelain", "--untracked-files=no"])
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "") if head.returncode == 0 else "unknown"
