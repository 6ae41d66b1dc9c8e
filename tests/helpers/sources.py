"""Small files of official sources, and what the converters make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from owseg.evaluation.convert import Plan, remaining, run_job

Pixels = np.ndarray[Any, Any]


def put(path: Path, pixels: Pixels | list[list[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def put_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def pixels_of(path: Path) -> list[list[int]]:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image).tolist()  # type: ignore[no-any-return]


def run_all(plan: Plan) -> int:
    return sum(run_job(job, plan.set) for job in remaining(plan))
