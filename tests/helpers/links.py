"""Files of links, and the rows that the reader makes of them."""

from pathlib import Path

from filtering.captions.reader import SourceConfig, read_links
from filtering.schema import LINKS, key_of

URL = "http://pics.example/{}.jpg"


ROWS = [(URL.format(number), f"a dog number {number} runs") for number in range(5)]


def rows_of(path: Path | str, **settings: str) -> list[tuple[str, str]]:
    tables = list(read_links(SourceConfig(path=str(path), **settings)))  # type: ignore[arg-type]
    assert all(table.schema == LINKS for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert all(row["key"] == key_of(row["url"], row["caption"]) for row in rows)
    return [(row["url"], row["caption"]) for row in rows]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
