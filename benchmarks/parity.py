"""Numbers recorded from an official implementation against ours: same weights in, same numbers out.

    python benchmarks/parity.py tcl --weights W.npz --case C.npz
    python benchmarks/parity.py ovsegmentor --weights W.npz --case C.npz
    python benchmarks/parity.py iic --case C.npz
    python benchmarks/parity.py dino --case C.npz

W holds a model's weights under their official names; the architecture is read off their shapes. C holds inputs and what the
official code made of them: every quantity in it is compared (parity_tcl.py and its neighbours say what may be in it). iic and
dino are parts of ViL-Seg, the clustering loss and the vision-based contrast with its head; their cases hold all they need.
Prints the largest differences; exit code 0 if all are within tolerance, 1 if one is not, 2 if a file cannot be used.
"""

import argparse
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from parity_comparison import Arrays, Comparison
from parity_dino import compare_dino
from parity_iic import compare_iic
from parity_ovsegmentor import build_ovsegmentor, compare_ovsegmentor
from parity_talk2dino import compare_talk2dino
from parity_tcl import build_tcl, compare_tcl

from owseg import InputError


class Kind(NamedTuple):
    """How a method is made from official weights, and compared with a case. Both raise InputError for what does not fit."""

    build: Callable[[Arrays], Any] | None
    """None: the case holds the weights."""
    compare: Callable[[Any, Arrays], Comparison]


KINDS = {
    "tcl": Kind(build_tcl, compare_tcl),
    "ovsegmentor": Kind(build_ovsegmentor, compare_ovsegmentor),
    "iic": Kind(None, compare_iic),
    "dino": Kind(None, compare_dino),
    "talk2dino": Kind(None, compare_talk2dino),
}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of a mistake, and the mistake on one line."""
    try:
        yield
    except InputError as mistake:
        raise InputError(f"{path}: {' '.join(str(mistake).split())}") from mistake


def read(path: Path) -> Arrays:
    """The arrays of an .npz file. Raises InputError where it is missing, damaged or something else."""
    try:
        with zipfile.ZipFile(path), np.load(path) as arrays:  # np.load alone reads other formats, too
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise InputError("no such file") from None
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot be read as .npz ({error})") from error
    if other := next((name for name, value in found.items() if not isinstance(value, np.ndarray)), None):
        raise InputError(f"cannot be read as .npz ({other} is no array)")
    return found


def main() -> int:
    """Compare one case; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--weights", type=Path, metavar="W.npz", help="of tcl and ovsegmentor")
    parser.add_argument("--case", type=Path, required=True, metavar="C.npz")
    given = parser.parse_args()
    try:
        build, compare = KINDS[given.kind]
        model = None
        if (build is None) != (given.weights is None):
            raise InputError(f"--weights: {given.kind} {'takes none' if build is None else 'needs a file of weights'}")
        if build is not None:
            with naming(given.weights):
                model = build(read(given.weights))
        with naming(given.case):
            comparison = compare(model, read(given.case))
    except InputError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    print(comparison.table())
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
