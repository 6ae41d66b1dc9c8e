"""What files hold."""

from pathlib import Path


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def files_under(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Name and bytes of each file, of all files unless told otherwise; at least one for each pattern."""
    found = {}
    for pattern in patterns or ("**/*",):
        paths = [path for path in folder.glob(pattern) if path.is_file()]
        assert paths, f"{folder}: no {pattern}"
        found |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return found
