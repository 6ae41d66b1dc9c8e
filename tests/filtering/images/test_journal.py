"""The journal: what was appended is read back, wherever the file was cut."""

from pathlib import Path

from filtering.images.journal import Journal

RECORDS = {"a": b"one picture", "b": b"", "c": b"{\n another \x00\xff\n"}


def write(path: Path) -> list[int]:
    """Where each record ends."""
    ends = []
    with Journal(path) as journal:
        for number, (key, body) in enumerate(RECORDS.items()):
            journal.append(key, {"number": number}, body)
            ends.append(path.stat().st_size)
            assert journal.body(key) == body
    return ends


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "journal")
    with Journal(tmp_path / "journal") as journal:
        assert journal.records == {"a": {"number": 0}, "b": {"number": 1}, "c": {"number": 2}}
        assert {key: journal.body(key) for key in RECORDS} == RECORDS
        journal.append("a", {"number": 3}, b"better")
    with Journal(tmp_path / "journal") as journal:
        assert (journal.records["a"], journal.body("a")) == ({"number": 3}, b"better")


def test_a_torn_tail_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    ends = write(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    torn = tmp_path / "torn"
    for size in range(len(whole) + 1):
        torn.write_bytes(whole[:size])
        with Journal(torn) as journal:
            assert list(journal.records) == list(RECORDS)[: sum(end <= size for end in ends)]
            journal.append("d", {"number": 9}, b"after the cut")
        with Journal(torn) as journal:
            assert journal.records["d"] == {"number": 9}
            assert journal.body("d") == b"after the cut"
            assert all(journal.body(key) == RECORDS[key] for key in journal.records if key != "d")


def test_garbage_at_the_end_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path / "journal")
    for garbage in (b"\0" * 100, b"\0\n\0", b"5\n", b"[]\n", b'["x", "y", {}]\n', b"\xff\xfe\n"):
        whole = (tmp_path / "journal").read_bytes()
        (tmp_path / "journal").write_bytes(whole + garbage)
        with Journal(tmp_path / "journal") as journal:
            assert list(journal.records) == list(RECORDS)
        assert (tmp_path / "journal").read_bytes() == whole
