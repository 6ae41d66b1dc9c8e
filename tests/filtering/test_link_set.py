"""Lists of links and keys: any spelling of a link is that link, and lists outlive being written again."""

from pathlib import Path

import pyarrow as pa
import pytest

from filtering import InputError
from filtering.link_set import FORGOTTEN, LinkSet, forgotten_in, read_links, write_forgotten

LINK = "http://photos.test/my%20photo.jpg"
SPELT = "HTTP://Photos.TEST/a/../my photo.jpg#there"


@pytest.mark.parametrize("name", [LINK, SPELT, "00ff"])
def test_rows_are_found_by_links_in_any_spelling_and_by_keys(name: str) -> None:
    urls = [LINK, SPELT, "http://photos.test/other.jpg", "", None]
    table = pa.table({"url": pa.array(urls, pa.string()), "key": ["1", "00ff", "3", "4", "5"]})
    expected = [name != "00ff", True, False, False, False]
    assert LinkSet((name,)).among(table).to_pylist() == expected
    assert LinkSet().among(table).to_pylist() == [False] * 5
    assert LinkSet(("http://photos.test/other.jpg",)).among(table.slice(2)).to_pylist() == [True, False, False]


def test_a_list_holds_each_image_once_and_reads_back(tmp_path: Path) -> None:
    assert not forgotten_in(tmp_path)
    links = LinkSet((LINK, "00ff")).with_more([SPELT, "00fe", "00ff"])
    assert links.names == (LINK, "00ff", "00fe")
    assert SPELT in links
    assert "00fd" not in links
    write_forgotten(tmp_path, links)
    assert forgotten_in(tmp_path) == links
    write_forgotten(tmp_path, LinkSet())
    assert not forgotten_in(tmp_path)  # emptied, which is no mistake in a run's own list
    assert LinkSet(("00ff", SPELT)).digest == LinkSet((LINK, "00ff")).digest != links.digest


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b"", "names no link"), (b"# nothing\n\n", "names no link"), (b"one\ntwo words\n", "line 2"), (b"\xff\xfe", "not UTF-8")],
)
def test_what_is_no_list_is_told(tmp_path: Path, content: bytes, wrong: str) -> None:
    (tmp_path / FORGOTTEN).write_bytes(content)
    with pytest.raises(InputError, match=wrong):
        read_links(tmp_path / FORGOTTEN)
    with pytest.raises(InputError, match="cannot be read"):
        read_links(tmp_path / "none.txt")
