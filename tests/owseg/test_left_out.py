"""Samples that cannot be used are named, counted, replaced the same way in every run, and left out up to a share."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import tiny
from helpers.tar_files import picture, sample, samples, write
from owseg import InputError, left_out
from owseg.data import CaptionBatches, batches_from
from owseg.left_out import BadSample, BadSamples, most
from owseg.shards import ShardReader
from owseg.training import LoopConfig, TrainJob, train

NUMBER = 48
CUT = picture(size=(200, 200))[:400]
SPOILT = {
    "no image": (".jpg", b"\0" * 300, "has an image of no known format"),
    "cut image": (".jpg", CUT, "has an image that cannot be decoded"),
    "empty image": (".jpg", b"", "has an empty image"),
    "HTML": (".jpg", b"<html>not found</html>", "has an image of no known format"),
    "Latin-1": (".txt", "ein Käfer".encode("latin-1"), "has a caption that is not UTF-8"),
    "empty caption": (".txt", b"", "has an empty caption"),
    "blank caption": (".txt", b" \n", "has an empty caption"),
    "nul caption": (".txt", b"\xef\xbb\xbf\0\0 ", "has an empty caption"),
}


def batches(path: Path, share: float = 0.1, *, entities: bool = False, size: int = 8, **settings: Any) -> CaptionBatches:
    reader = ShardReader([path], entities=entities, max_bad_share=share)
    settings = {"batch_size": size, "seed": 0, "normalisation": tiny.HALF, **settings}
    return CaptionBatches(reader, lambda texts: torch.zeros(len(texts), 2), tiny.AUGMENT, **settings)


@pytest.mark.parametrize("what", SPOILT)
def test_a_sample_that_cannot_be_used_is_named_and_replaced(tmp_path: Path, what: str) -> None:
    suffix, content, reason = SPOILT[what]
    path = write(tmp_path / "00007.tar", samples(NUMBER, {5: (suffix, content)}))
    drawn = batches(path)
    steps = range(2 * NUMBER // 8)
    met = [bad for step in steps for bad in drawn[step].bad] + drawn.reader.bad
    assert {(bad.shard, bad.key) for bad in met} == {(str(path), "0005")}
    assert met[0].reason.startswith(reason)
    seen = [key for step in steps for key in drawn[step].keys]
    assert "0005" not in seen
    assert len(seen) == 2 * NUMBER


def test_who_takes_the_place_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    """On any rank, in any loader process, in any order; the others in the batch are those that would be there anyway."""
    whole = batches(write(tmp_path / "a" / "0.tar", samples(NUMBER)))
    spoilt = batches(write(tmp_path / "b" / "0.tar", samples(NUMBER, {5: (".jpg", CUT), 9: (".jpg", b"x")})))
    ranks = [batches(tmp_path / "b" / "0.tar", rank=rank, world_size=2) for rank in range(2)]
    helped = batches_from(batches(tmp_path / "b" / "0.tar"), 0, 12, workers=2)
    for step, from_processes in enumerate(helped):
        before, after = whole[step].keys, spoilt[step].keys
        assert from_processes.keys == after == [key for rank in ranks for key in rank[step].keys]
        assert torch.equal(from_processes.image, spoilt[step].image)
        assert len(set(after)) == 8
        changed = [old for old, new in zip(before, after, strict=True) if old != new]
        assert changed == [key for key in before if key in ("0005", "0009")]
        assert set(changed) <= {bad.key for bad in spoilt[step].bad} <= {"0005", "0009"}


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_the_share_ends_training_in_one_line(tmp_path: Path, workers: int) -> None:
    """Also out of a loader process, whose traceback stays out of the message."""
    path = write(tmp_path / "00000.tar", samples(NUMBER, dict.fromkeys(range(24), (".jpg", b"no image"))))
    with pytest.raises(InputError) as caught:
        list(batches_from(batches(path, size=16), 0, 3, workers=workers))
    told = str(caught.value)
    assert told.startswith(f"5 of 48 training samples cannot be used: {path}: sample ")
    assert "train.max_bad_share is 0.1" in told
    assert "\n" not in told


def test_a_small_corpus_may_have_a_few(tmp_path: Path) -> None:
    assert [most(*given) for given in ((2, 0.0), (10, 0.0), (1000, 0.01), (1000, 0.0), (4, 1.0))] == [1, 3, 10, 3, 3]
    files = samples(9, {0: (".jpg", b"no image"), 1: (".txt", b"\xff"), 2: (".jpg", b"")})
    assert len(batches(write(tmp_path / "0.tar", files), 0.0)[0].keys) == 8
    files = samples(9, dict.fromkeys(range(4), (".jpg", b"")))
    with pytest.raises(InputError, match=r"4 of 9 training samples cannot be used: .*has an empty image"):
        ShardReader([write(tmp_path / "0.tar", files)], max_bad_share=0.4)


def test_halves_of_samples_and_broken_json_are_counted(tmp_path: Path) -> None:
    files = samples(8, entities=["wall"])
    files = [(name, b"{" if name == "0001.json" else data) for name, data in files if name not in ("0002.jpg", "0003.txt")]
    reader = ShardReader([write(tmp_path / "0.tar", files)], entities=True)
    assert [(bad.key, bad.reason.partition(";")[0]) for bad in reader.bad] == [
        ("0001", "carries no list of entities"),
        ("0002", "has no image"),
        ("0003", "has no .txt"),
    ]
    assert len(reader) == 5
    assert len(ShardReader([tmp_path / "0.tar"])) == 6, "JSON has no say where entities are not needed"


def test_partners_that_cannot_be_read_are_drawn_again(tmp_path: Path) -> None:
    files = samples(16, {3: (".jpg", b"no image")}, entities=["wall"])
    drawn = batches(write(tmp_path / "0.tar", files), entities=True, partners=True)
    for step in range(6):
        partner = drawn[step].partner
        assert partner is not None
        assert partner.shape == drawn[step].image.shape
    alone = [*sample("a", entities=["cat"]), *sample("b", entities=["cat"], image=b"no image")]
    found = batches(write(tmp_path / "1.tar", alone), entities=True, partners=True, size=1)
    assert [found[step].keys for step in range(2)] == [["a"], ["a"]]


def test_partners_of_bad_samples_do_not_depend_on_ranks(tmp_path: Path) -> None:
    """Nor does a bad sample that another place of the batch has met, too: each draws until it has one."""
    images = {index: picture(f"rgb({15 * index},0,0)") for index in range(16)} | {3: CUT, 8: b"no image"}
    files = samples(16, {index: (".jpg", image) for index, image in images.items()}, entities=["wall"])
    path = write(tmp_path / "0.tar", files)
    alone = batches(path, 0.2, entities=True, partners=True, size=16)
    ranks = [batches(path, 0.2, entities=True, partners=True, size=16, rank=rank, world_size=4) for rank in range(4)]
    for step in range(4):
        partner, shares = alone[step].partner, [rank[step].partner for rank in ranks]
        assert partner is not None
        assert torch.equal(partner, torch.cat([share for share in shares if share is not None]))


def odd(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.full((40, 40), 65535 if mode == "I;16" else 255, np.uint16 if mode == "I;16" else np.uint8))
    (image if mode == "I;16" else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("1", "PNG")]
)
def test_odd_modes_are_read_as_viewers_show_them(tmp_path: Path, mode: str, kind: str) -> None:
    files = sample("a", image=odd(mode, kind))
    found = batches(write(tmp_path / "0.tar", files), size=1)[0]
    assert found.bad == ()
    assert found.image.min() > 0.99, "white"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (4000, 2)])
def test_images_of_odd_sizes_are_trained_on(tmp_path: Path, size: tuple[int, int]) -> None:
    assert batches(write(tmp_path / "0.tar", sample("a", image=picture(size=size))), size=1)[0].image.shape == (1, 3, 32, 32)


def test_ranks_count_each_bad_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks come to the same number, and stop alike; the file keeps them for later starts."""
    met = [[BadSample("0.tar", "a", "no"), BadSample("0.tar", "b", "no")], [BadSample("0.tar", "b", "no")]]
    monkeypatch.setattr(left_out, "_gather", lambda own: met)
    ranks = [BadSamples(tmp_path / "bad.jsonl", 0.0, write=rank == 0) for rank in range(2)]
    for rank in ranks:
        rank.samples = 100
        assert (rank.over_ranks(), rank.over_ranks()) == (2, 2)
    assert [json.loads(line)["key"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == ["a", "b"]
    met.append([BadSample("1.tar", "c", "no"), BadSample("1.tar", "d", "no")])
    for rank in ranks:
        with pytest.raises(InputError, match=r"4 of 100 training samples cannot be used: 0\.tar: sample a no"):
            rank.over_ranks()
    monkeypatch.setattr(left_out, "_gather", lambda own: [own])
    again = BadSamples(tmp_path / "bad.jsonl", 0.1, write=True)
    again.samples = 100
    assert again.over_ranks() == 4


def test_the_log_counts_them_and_a_file_names_them(tmp_path: Path) -> None:
    write(tmp_path / "tars" / "00000.tar", samples(24, {5: (".jpg", CUT), 6: (".txt", b"")}))

    def job(out: str, **loop: Any) -> TrainJob:
        encoder = tiny.encoder_config(tmp_path)
        loop = {"log_every": 1, **loop}
        shards = (tmp_path / "tars" / "00000.tar",)
        return TrainJob(
            method=tiny.clip_config(6), encoder=encoder, shards=shards, out=tmp_path / out, train=LoopConfig(**loop)
        )

    first, second = (train(job(out, loader_workers=workers)).read_bytes() for out, workers in (("a", 0), ("b", 1)))
    assert first == second
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["bad_samples"] == 2
    named = [json.loads(line) for line in (tmp_path / "a" / "bad_samples.jsonl").read_text().splitlines()]
    assert [(one["shard"], one["key"]) for one in named] == [
        (str(tmp_path / "tars" / "00000.tar"), key) for key in ("0005", "0006")
    ]
