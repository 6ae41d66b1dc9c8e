"""Any keys, captions and sizes come out of a tar as they went in; of a cut or garbled one a reason is told."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.tar_files import sample, write
from owseg import InputError
from owseg.shards import ShardReader

NAMES = st.text("abz019é日_- ", min_size=1, max_size=8).filter(lambda name: name == name.strip())
KEYS = st.builds(
    "{}{}{}".format, st.sampled_from(["", "folder/", "a/b.c/"]), NAMES, st.sampled_from(["", ".0", ".jpg copy", " 2.5"])
)
BLANK = " \t\r\n\0\ufeff"
CAPTIONS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: bool(text.strip(BLANK)))
IMAGES = st.one_of(st.binary(min_size=1, max_size=80), st.sampled_from([511, 512, 513, 5000]).map(lambda size: b"\xff" * size))
SAMPLES = st.lists(st.tuples(KEYS, CAPTIONS, IMAGES), min_size=1, max_size=6, unique_by=lambda one: one[0])

quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def tar_of(folder: str, samples: list[tuple[str, str, bytes]]) -> Path:
    return write(Path(folder) / "00000.tar", [file for key, caption, image in samples for file in sample(key, caption, image)])


@given(samples=SAMPLES)
@example(samples=[("long " * 60, "a name of its own header", b"\xff")])
@quick
def test_what_went_in_comes_out(samples: list[tuple[str, str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = ShardReader([tar_of(folder, samples)])
        found = [(reader.samples.key(index), *reader.read(index)[:2]) for index in range(len(reader))]
    shown = [(key, image, [caption.removeprefix("\ufeff")]) for key, caption, image in samples]
    assert found == shown


@given(samples=SAMPLES, data=st.data())
@quick
def test_of_a_cut_or_garbled_tar_a_reason_is_told(samples: list[tuple[str, str, bytes]], data: st.DataObject) -> None:
    """InputError of the whole, ValueError of a sample; what is read beside is none the less what was written or garbled."""
    with tempfile.TemporaryDirectory() as folder:
        tar = tar_of(folder, samples)
        content = bytearray(tar.read_bytes())
        if data.draw(st.booleans(), "cut"):
            del content[data.draw(st.integers(0, len(content) - 1), "from") :]
        else:
            for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8), "places"):
                content[at] = data.draw(st.integers(0, 255), "byte")
        tar.write_bytes(content)
        told = []
        try:
            reader = ShardReader([tar], max_bad_share=1.0)
            for index in range(len(reader)):
                try:
                    assert reader.read(index).image in bytes(content)
                except ValueError as error:
                    told.append(str(error))
        except InputError as error:
            told.append(str(error))
    assert all(told)
    assert not any("\n" in reason for reason in told)
