"""What counts as a sample, and tars that hold less than their record says."""

import json
import tempfile
from pathlib import Path

import pytest

from helpers.tar_files import picture, sample, samples, write
from owseg import InputError
from owseg.shards import ShardReader
from storage import node_arrays
from storage.tar_samples import sample_of

NAMED = ["entity 0", "all", "entity 2", "entity 1"]


def keys_of(path: Path) -> list[str]:
    reader = ShardReader([path])
    return [reader.samples.key(index) for index in range(len(reader))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001.jpg", ("0001", ".jpg")),
        ("Track 2.0.jpg", ("Track 2.0", ".jpg")),
        ("a/b.c/Track 2.0.txt", ("a/b.c/Track 2.0", ".txt")),
        ("./0001.JPEG", ("0001", ".jpeg")),
        ("0001.seg.npy", ("0001", ".seg.npy")),
        ("README", ("README", "")),
        ("._0001.jpg", ("", "")),
        ("a/.DS_Store", ("", "")),
    ],
)
def test_the_sample_that_a_file_belongs_to(name: str, expected: tuple[str, str]) -> None:
    assert sample_of(name) == expected


def test_keys_with_dots_are_ten_samples(tmp_path: Path) -> None:
    files = [file for number in range(10) for file in sample(f"Track 2.{number}", f"number {number}")]
    reader = ShardReader([write(tmp_path / "a.tar", files)])
    assert [reader.samples.key(index) for index in range(10)] == [f"Track 2.{number}" for number in range(10)]
    assert [reader.read(index).captions for index in range(10)] == [[f"number {number}"] for number in range(10)]


@pytest.mark.parametrize(
    ("image", "kind"),
    [("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.bmp", "BMP"), ("a.GIF", "GIF")],
)
def test_images_of_every_kind(tmp_path: Path, image: str, kind: str) -> None:
    encoded = picture(kind=kind)
    reader = ShardReader([write(tmp_path / "a.tar", [(image, encoded), ("a.txt", b"a wall")])])
    assert reader.read(0).image == encoded


def test_folders_further_files_and_repeated_names(tmp_path: Path) -> None:
    """The same name in two folders, a mask beside an image, files that systems leave, a name that comes twice."""
    files = [*sample("a/1"), *sample("b/1"), ("b/1.seg.png", picture(kind="PNG")), ("b/._1.jpg", b"mac"), ("LICENSE", b"CC")]
    assert keys_of(write(tmp_path / "a.tar", [*files, *sample("a/1", "again")])) == ["a/1", "a/1", "b/1"]


@pytest.mark.parametrize("record", ["sizes.json", "00000_stats.json"])
def test_a_tar_with_fewer_samples_than_its_record_says_is_refused(tmp_path: Path, record: str) -> None:
    told = {"00000.tar": 50} if record == "sizes.json" else {"count": 60, "successes": 50}
    path = write(tmp_path / "00000.tar", samples(14))
    assert len(ShardReader([path])) == 14
    (tmp_path / record).write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"00000\.tar: samples are missing: 14 of 50 samples can be read; fetch or make it"):
        ShardReader([path])


@pytest.mark.parametrize("own", [True, False])
def test_a_cut_tar_is_refused_with_what_is_left_of_it(tmp_path: Path, own: bool) -> None:
    """A download's, cut behind its 14th of 50 samples: nothing of it is trained on, and the cure is told."""
    path = write(tmp_path / "00000.tar", samples(50))
    reader = ShardReader([path])
    path.write_bytes(path.read_bytes()[: reader.samples.place(14)[1][0] - 100])
    if own:
        (tmp_path / "_done").mkdir()
        (tmp_path / "sizes.json").write_text('{"00000.tar": 50}')
    with pytest.raises(InputError) as caught:
        ShardReader([path])
    of = "14 of 50 samples can be read; run the download again with the same config" if own else "14 samples can be read; fetch"
    assert str(caught.value).startswith(f"{path}: not a whole tar (cut at byte ")
    assert of in str(caught.value)


@pytest.mark.parametrize("record", ["[]", "{", '{"00000.tar": "many"}', '{"00001.tar": 50}'])
def test_a_record_that_says_nothing_of_a_tar_is_none(tmp_path: Path, record: str) -> None:
    (tmp_path / "sizes.json").write_text(record)
    assert len(ShardReader([write(tmp_path / "00000.tar", samples(2))])) == 2


def test_a_tar_that_changes_or_goes_while_it_is_trained_on_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "00000.tar", samples(3))
    reader = ShardReader([path])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"00000\.tar: has been changed"):
        reader.read(2)
    path.unlink()
    with pytest.raises(InputError, match=r"00000\.tar: cannot be read \(No such file"):
        reader.read(0)


@pytest.mark.parametrize("entities", [False, True])
def test_arrays_that_processes_share_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entities: bool) -> None:
    """Several tars, bad samples in each, and fewer than the tars hold in all."""
    for tar in range(3):
        files = samples(6, {tar: (".jpg", b""), 4: (".txt", b"")}, entities=[f"entity {tar}", "all"])
        write(tmp_path / f"{tar}.tar", [*files, *sample("more", entities=[f"entity {2 - tar}"])])
    tars = sorted(tmp_path.glob("*.tar"))
    plain = ShardReader(tars, entities=entities, max_bad_share=0.5)
    monkeypatch.setattr(node_arrays, "SHARED_FROM", 0)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for shared in (ShardReader(tars, entities=entities, max_bad_share=0.5) for _ in range(2)):
        assert [shared.read(index) for index in range(15)] == [plain.read(index) for index in range(15)]
        assert [shared.samples.key(index) for index in range(15)] == [plain.samples.key(index) for index in range(15)]
        assert shared.bad == plain.bad
        assert shared.entities.names == plain.entities.names == (NAMED if entities else [])
    assert len(plain) == 15
    with pytest.raises(InputError, match=r"6 of 21 training samples cannot be used: .*0\.tar: sample 0000 has an empty image"):
        ShardReader(tars, entities=entities, max_bad_share=0.0)
