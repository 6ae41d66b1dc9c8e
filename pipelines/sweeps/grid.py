"""The grid of a sweep: every combination of the values of some keys, times seeds; each combination is a cell."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from pipelines.app.config import ConfigError, lay_over, read_values
from pipelines.app.run_dir import EXECUTION_KEYS
from pipelines.app.settings import Config

VARY = "--vary"
MOST_SEEDS = 1000
LONGEST_NAME = 120
"""Of a cell, whose name is that of its folder and of its run in MLflow."""


@dataclass(frozen=True)
class Axis:
    """A key and the values that it takes, by label."""

    key: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of the sweep."""

    name: str
    """Its folder's name: the labels of its values and the seed."""
    setting: str
    """The labels of its values, but for that of `column`."""
    column: str
    """The label of its value of the last key, where that is one of evaluation's; else "". Columns stand side by side."""
    seed: int
    varied: Mapping[str, Any]
    """The value of each varied key."""
    config: Config
    """Its settings, with its own folder."""


@dataclass(frozen=True)
class Grid:
    """What is varied, and the cells, seed by seed."""

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


def make_grid(config: Config, vary: Sequence[str], seeds: str) -> Grid:
    """The grid that the command line asks for, below the folder of `config`. Raises ConfigError for what cannot be."""
    count = _count(seeds)
    axes = tuple(_axis(config, text) for text in vary)
    for key, times in Counter(axis.key for axis in axes).items():
        if times > 1:
            raise ConfigError(f"{VARY}: '{key}' is varied twice; give all of its values once: {VARY} {key}=[a, b]")
        if inside := next((other.key for other in axes if other.key.startswith(f"{key}.")), None):
            raise ConfigError(f"{VARY}: '{key}' holds '{inside}', which is varied too; vary one of the two")
        if key == "seed" and count > 1:
            raise ConfigError(f"{VARY}: 'seed' is what --seeds varies; give one of the two")
    cells = tuple(_cells(config, axes, count))
    for name, times in Counter(cell.name for cell in cells).items():
        if times > 1:
            raise ConfigError(
                f"{VARY}: {times} cells would be named '{name}'; name the values apart: KEY={{label: value, ...}}"
            )
        if len(name) > LONGEST_NAME:
            raise ConfigError(f"{VARY}: '{name[:40]}...' is too long for a folder; name the values: KEY={{label: value, ...}}")
    return Grid(axes, tuple(dict.fromkeys(cell.seed for cell in cells)), cells)


def _count(seeds: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", seeds) or int(seeds) > MOST_SEEDS:
        raise ConfigError(f"--seeds: '{seeds[:40]}' is no number of seeds; give a whole number from 1 to {MOST_SEEDS}")
    return int(seeds)


def _axis(config: Config, text: str) -> Axis:
    """KEY=[a, b], or KEY={label: a, other: b}."""
    key, values = read_values(config, text, source=VARY)
    if any(f"{key}.".startswith(f"{section}.") for section in EXECUTION_KEYS):
        raise ConfigError(
            f"{VARY}: '{key}' says where or how work is done, and results do not depend on it; set it as {key}=value"
        )
    if isinstance(values, dict):
        named = [(str(label), value) for label, value in values.items()]
    elif isinstance(values, list):
        named = [(f"{key.rpartition('.')[2]}={_shown(value)}", value) for value in values]
    else:
        raise ConfigError(f"{VARY}: '{key}' needs several values: {key}=[a, b] or, with names, {key}={{label: value, ...}}")
    if not named:
        raise ConfigError(f"{VARY}: '{key}' has no values; give at least one: {VARY} {key}=[a, b]")
    labels = [re.sub(r"[^\w.=+-]+", "_", label, flags=re.ASCII).strip("_.") for label, _ in named]
    for label, times in Counter(labels).items():
        if not label or times > 1:
            told = f"{times} values of '{key}' have the label '{label}'" if label else f"a value of '{key}' has no label"
            raise ConfigError(f"{VARY}: {told}; name them apart: {key}={{label: value, ...}}")
    return Axis(key, dict(zip(labels, (value for _, value in named), strict=True)))


def _shown(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip("{}[]\"'")


def _cells(config: Config, axes: Sequence[Axis], count: int) -> Iterator[Cell]:
    columns = bool(axes) and axes[-1].key.startswith("evaluate.")
    combinations = list(product(*(axis.values for axis in axes)))
    values = [{axis.key: axis.values[label] for axis, label in zip(axes, labels, strict=True)} for labels in combinations]
    configs = [lay_over(config, varied, source=VARY) for varied in values]
    for extra in range(count):
        for labels, varied, base in zip(combinations, values, configs, strict=True):
            seed = base.seed + extra
            name = "-".join([*labels, f"seed{seed}"])
            yield Cell(
                name=name,
                setting="-".join(labels[:-1] if columns else labels),
                column=labels[-1] if columns else "",
                seed=seed,
                varied=varied,
                config=replace(base, seed=seed, run_dir=str(Path(config.run_dir) / "cells" / name)),
            )
