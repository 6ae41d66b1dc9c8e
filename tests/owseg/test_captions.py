"""Samples with several captions: one is drawn each epoch, with its entities; samples with one are as ever."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.tar_files import picture, sample, write
from helpers.tensors import assert_same
from owseg import InputError
from owseg.data import Batch, CaptionBatches, batches_from, caption_number
from owseg.shards import ShardReader
from storage.tar_index import index_path

TWO = {"captions": ["a dog", "a cat on a mat"], "caption_entities": [["dog"], ["cat", "mat", "cat"]]}


def prepare(
    captions: list[str], entities: list[list[str]], shared: list[str] | None, randoms: list[random.Random]
) -> dict[str, Tensor]:
    seen.append((captions, entities, shared))
    return {"drawn": torch.tensor([own.random() for own in randoms])}


seen: list[tuple[list[str], list[list[str]], list[str] | None]] = []


def batches(path: Path, *, entities: bool = True, **settings: Any) -> CaptionBatches:
    reader = ShardReader([path], entities=entities)
    settings = {"batch_size": 4, "seed": 0, "normalisation": tiny.HALF, **settings}
    return CaptionBatches(reader, lambda texts: torch.tensor([[len(text)] for text in texts]), tiny.AUGMENT, **settings)


def several(number: int, about: dict[str, Any] = TWO) -> list[tuple[str, bytes]]:
    return [file for key in range(number) for file in sample(f"{key:04}", "a dog", entities=["dog"], **about)]


def drawn(batch: Batch) -> dict[str, str]:
    return dict(zip(batch.keys, batch.captions, strict=True))


def test_each_epoch_draws_one_by_seed_epoch_and_key(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", several(4))
    epochs = [drawn(batches(path)[epoch]) for epoch in range(40)]
    counts = Counter(caption for epoch in epochs for caption in epoch.values())
    assert counts.keys() == set(TWO["captions"])
    assert 50 <= counts["a dog"] <= 110, "160 draws"
    assert len({tuple(sorted(epoch.items())) for epoch in epochs}) > 4, "keys draw for themselves"
    for epoch, expected in enumerate(epochs):
        for key, caption in expected.items():
            assert TWO["captions"][caption_number(2, 0, epoch, key)] == caption
    assert [drawn(batches(path, seed=1)[epoch]) for epoch in range(8)] != epochs[:8]


def test_loader_processes_and_ranks_draw_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", several(8))
    whole = batches(path)
    for step, batch in enumerate(batches_from(batches(path), 0, 6, workers=2)):
        assert drawn(batch) == drawn(whole[step])
        assert batch.tokens.squeeze(1).tolist() == [len(caption) for caption in batch.captions]
        parts = [batches(path, rank=rank, world_size=2)[step] for rank in range(2)]
        assert [caption for part in parts for caption in part.captions] == whole[step].captions


def test_the_drawn_captions_entities_go_with_it(tmp_path: Path) -> None:
    seen.clear()
    found = batches(write(tmp_path / "0.tar", several(4)), prepare=prepare, partners=True)
    for step in range(12):
        found[step]
    told = {caption: names for captions, entities, _ in seen for caption, names in zip(captions, entities, strict=True)}
    assert told == {"a dog": ["dog"], "a cat on a mat": ["cat", "mat"]}
    for _, entities, shared in seen:
        assert shared is not None
        assert all(entity in names for entity, names in zip(shared, entities, strict=True)), "a partner shares what is told"


def test_a_partner_may_show_the_entity_by_any_of_its_captions(tmp_path: Path) -> None:
    """A mat is told of by the second caption of one image alone; the other image's partner is that one, whatever it draws."""
    files = [*sample("a", "a dog", entities=["dog"], **TWO), *sample("b", "a mat", entities=["mat"])]
    found = batches(write(tmp_path / "0.tar", files), partners=True, batch_size=2)
    assert found.partners is not None
    assert found.partners.draw(1, np.random.default_rng(0)) == (0, "mat")


def test_samples_with_one_caption_are_as_ever(tmp_path: Path) -> None:
    """Their draws, too, beside others with several; a list of one is one."""
    one = [file for key in range(8) for file in sample(f"{key:04}", "a dog", entities=["dog"])]
    mixed = [*one[:-3], *sample("0007", "a dog", entities=["dog"], **TWO)]
    single = [file for key in range(8) for file in sample(f"{key:04}", "a dog", entities=["dog"], captions=["other"])]
    plain, other, alone = (
        batches(write(tmp_path / name, files), prepare=prepare, partners=True)
        for name, files in (("0.tar", one), ("1.tar", mixed), ("2.tar", single))
    )
    for step in range(4):
        for found in (other[step], alone[step]):
            assert found.keys == plain[step].keys
            assert torch.equal(found.image, plain[step].image)
            assert_same(found.texts, plain[step].texts)
        assert alone[step].captions == ["a dog"] * 4


@pytest.mark.parametrize(
    ("about", "with_entities", "without"),
    [
        ({"captions": ["a", "b"]}, ["a dog"], ["a", "b"]),  # no entities for them: the first alone
        ({"captions": ["a", "b"], "caption_entities": [["a"]]}, ["a dog"], ["a", "b"]),
        ({"captions": ["a", "b"], "caption_entities": [["a"], "b"]}, ["a dog"], ["a", "b"]),
        ({"captions": ["a", " "], "caption_entities": [["a"], []]}, ["a dog"], ["a dog"]),
        ({"captions": "a, b", "caption_entities": []}, ["a dog"], ["a dog"]),
        ({"captions": [{"raw": "a"}, {"raw": "b"}]}, ["a dog"], ["a dog"]),
        (TWO, TWO["captions"], TWO["captions"]),
    ],
)
def test_lists_that_do_not_fit_are_none(
    tmp_path: Path, about: dict[str, Any], with_entities: list[str], without: list[str]
) -> None:
    path = write(tmp_path / "0.tar", sample("a", "a dog", entities=["dog"], **about))
    assert ShardReader([path], entities=True).read(0).captions == with_entities
    assert ShardReader([path]).read(0).captions == without


def test_the_index_holds_no_captions(tmp_path: Path) -> None:
    """Only the places of those that are several."""
    long = {"captions": ["a dog " * 500, "a cat " * 500]}
    reader = ShardReader([write(tmp_path / "0.tar", [*several(50, long), *sample("one")])])
    assert [reader.samples.place(index)[3][1] > 6000 for index in range(51)] == [True] * 50 + [False]
    assert index_path(tmp_path / "0.tar").stat().st_size < 51 * 60
    assert reader.read(49).captions == long["captions"]


def test_a_field_of_the_json_is_the_caption_where_there_is_no_text(tmp_path: Path) -> None:
    """As foreign WebDatasets have it, with dots in keys; where a sample has a .txt, that counts."""
    files = [(f"img.v1.{number}.jpeg", picture()) for number in range(9)]
    abouts = [{"alt": "ein Käfer"}, {"alt": 3}, {"other": "x"}, {"alt": "no"}, *[{"alt": "more"}] * 5]
    files += [(f"img.v1.{number}.json", json.dumps(about).encode()) for number, about in enumerate(abouts)]
    tar = write(tmp_path / "x.y-0.tar", [*files, ("img.v1.3.txt", b"a text")])
    with pytest.raises(InputError, match=r"cannot be used: .*img\.v1\.0 has no \.txt; .*train\.caption_field"):
        ShardReader([tar], max_bad_share=0.2)
    reader = ShardReader([tar], caption_field="alt")
    assert (len(reader), reader.read(0).captions, reader.read(3).captions) == (9, ["ein Käfer"], ["a text"])
    for index in (1, 2):
        with pytest.raises(ValueError, match=r"has neither a \.txt nor a text in the field 'alt'"):
            reader.read(index)
