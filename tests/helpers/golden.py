"""benchmarks/parity.py in this process, on recorded numbers."""

import sys
from pathlib import Path

import parity
import pytest


def run_parity(kind: str, *weights_and_case: Path) -> int:
    """The exit code of comparing a case (the last file) of a method with weights, or of a kind that has none."""
    *weights, case = map(str, weights_and_case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["parity.py", kind, *(["--weights", *weights] if weights else []), "--case", case])
        return parity.main()


def the_failed_quantity(told: str) -> str:
    """The line of the only quantity that parity.py found to differ."""
    (line,) = (line for line in told.splitlines() if line.endswith("FAIL"))
    return line
