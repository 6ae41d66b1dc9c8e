"""Peak memory of this process, as Linux tells it."""

from pathlib import Path

_PROCESS = Path("/proc/self")


def reset_peak() -> None:
    """Set the high-water mark ("VmHWM") back to what is resident now."""
    (_PROCESS / "clear_refs").write_text("5")


def resident(field: str) -> int:
    """Bytes of this process that are resident now ("VmRSS"), or were at most since the last reset ("VmHWM")."""
    line = next(line for line in (_PROCESS / "status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
