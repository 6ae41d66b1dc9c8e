"""Scores of a part of a benchmark on disk: whole or not there, and read back only where they are what was asked for."""

import io
import json
import zlib
from collections.abc import Collection
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from owseg import InputError
from owseg.evaluation.convert import write_file
from owseg.evaluation.scoring import Score

ARRAYS = ("counts", "boundary", "intersection", "union", "joint", "oracle")
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile, zlib.error, NotImplementedError)
"""What numpy, zip and JSON raise for files that are cut, empty, altered or something else."""


class DamagedError(InputError):
    """A file of ours that is not as it was written: it is made again."""


def write_score(path: Path, score: Score) -> None:
    """Write a compressed .npz; what bears the name is complete."""
    content = io.BytesIO()
    rest = {key: value for key, value in vars(score).items() if key not in ARRAYS}
    np.savez_compressed(content, **{key: getattr(score, key) for key in ARRAYS}, rest=np.array(json.dumps(rest)))
    write_file(path, content.getvalue())


def read_score(path: Path, ids: Collection[str], classes: int, scored: int, *, oracle: bool) -> Score:
    """What `write_score` wrote for the items `ids` of a benchmark with so many classes, of which so many are scored.

    Raises DamagedError where the file holds anything else.
    """
    try:
        with path.open("rb") as file, np.load(file) as stored:  # numpy leaves a damaged file open
            rest = json.loads(str(stored["rest"]))
            tuples = {key: tuple(rest.get(key, ())) for key in ("thresholds", "shortened")}
            score = Score(**{key: stored[key] for key in ARRAYS}, **rest | tuples)
        wrong = _difference(score, ids, Score.empty(classes, scored, score.threshold, score.thresholds, oracle=oracle))
    except UNREADABLE as error:
        raise DamagedError(f"{path}: damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
    if wrong:
        raise DamagedError(f"{path}: damaged ({wrong})")
    return score


def _difference(score: Score, ids: Collection[str], nothing: Score) -> str:
    """How a score differs from one of these items, in the shapes of the score of none; empty where it does not."""
    if {*score.images, *score.skipped} != {*ids}:
        return "it is of other images"
    for name in ARRAYS:
        found, wanted = getattr(score, name), getattr(nothing, name)
        rows = len(score.images) if name in ("intersection", "union") else len(wanted)
        if found.dtype.kind != "i" or found.shape != (rows, *wanted.shape[1:]):
            return f"{name} is {found.dtype} {list(found.shape)}"
    return ""
