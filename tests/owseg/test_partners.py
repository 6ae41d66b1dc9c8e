"""Partners and what a method prepares: who is drawn how often, and that batches stay functions of seed, step and place."""

import io
import random
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.tensors import assert_same
from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.crops import Crops
from owseg.data import Batch, CaptionBatches, batches_from
from owseg.partners import EntityLists, Partners
from owseg.shards import ShardReader

LISTS = (["dog", "cat"], ["dog"], ["dog", "tree", "dog"], [], ["cat"], ["bus"])
AUGMENT = AugmentConfig(size=32)


def lists_of(samples: Sequence[Sequence[str]]) -> EntityLists:
    numbers: dict[str, int] = {}
    lists = [[numbers.setdefault(name, len(numbers)) for name in dict.fromkeys(names)] for names in samples]
    ends = np.cumsum([0, *map(len, lists)])
    return EntityLists(list(numbers), np.array([number for some in lists for number in some], np.int32), ends)


def draws(sample: int, times: int = 4000) -> Counter[tuple[int, str]]:
    partners, rng = Partners(lists_of(LISTS)), np.random.default_rng(0)
    return Counter(partners.draw(sample, rng) for _ in range(times))


def test_a_partner_is_uniform_over_the_samples_entities_and_then_over_their_other_samples() -> None:
    found = draws(0)
    assert found.keys() == {(1, "dog"), (2, "dog"), (4, "cat")}
    # A share of 4,000 draws has a standard deviation below 0.8 %.
    for drawn, share in {(1, "dog"): 0.25, (2, "dog"): 0.25, (4, "cat"): 0.5}.items():
        assert found[drawn] / 4000 == pytest.approx(share, abs=0.04)


def test_an_entity_that_nobody_shares_is_not_drawn() -> None:
    assert draws(2).keys() == {(0, "dog"), (1, "dog")}


def test_a_sample_is_its_own_partner_only_where_it_is_alone() -> None:
    assert draws(5, 10).keys() == {(5, "bus")}
    assert draws(3, 10).keys() == {(3, "")}
    for sample in (0, 1, 2, 4):
        assert sample not in {other for other, _ in draws(sample)}


def test_a_corpus_without_any_entity_has_no_partners() -> None:
    partners = Partners(lists_of([[], []]))
    assert partners.draw(1, np.random.default_rng(0)) == (1, "")


def test_the_index_is_compact() -> None:
    """4 million samples of 4 entities each take less than 200 MB."""
    lists = lists_of([[f"entity {i % 97}", f"entity {i % 89}", f"entity {i % 83}", "all"] for i in range(5000)])
    partners = Partners(lists)
    held = sum(len(part) * part.itemsize for part in (lists.flat, lists.ends, partners.samples, partners.starts))
    assert held / 5000 < 45


# ---------------------------------------------------------------------------------------------------------------- batches


def prepare(
    captions: list[str], entities: list[list[str]], shared: list[str] | None, randoms: list[random.Random]
) -> dict[str, Tensor]:
    """Lengths and a draw of its own, as a method's texts are made."""
    made = {
        "entities": torch.tensor([len(names) for names in entities]),
        "drawn": torch.tensor([own.random() for own in randoms]),
    }
    return made if shared is None else {**made, "shared": torch.tensor([len(name) for name in shared])}


def batches(folder: Path, **settings: Any) -> CaptionBatches:
    reader = ShardReader(sorted(folder.glob("*.tar")) or tiny.write_shards(folder), entities=True)
    settings = {"augment": AUGMENT, "batch_size": 8, "seed": 0, "partners": True, "prepare": prepare, **settings}
    return CaptionBatches(reader, lambda texts: torch.zeros(len(texts), 2), normalisation=tiny.HALF, **settings)


def assert_same_batch(found: Batch, expected: Batch) -> None:
    assert found.keys == expected.keys
    assert found.texts.keys() == {"entities", "drawn", "shared"}
    assert_same(tensors_of(found), tensors_of(expected))


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    assert batch.partner is not None
    return {"image": batch.image, "partner": batch.partner, **batch.texts}


def test_partners_depend_on_seed_step_and_place_alone(tmp_path: Path) -> None:
    """Whatever was drawn before, and however many processes load."""
    first, again = batches(tmp_path), batches(tmp_path)
    again[1]
    assert_same_batch(again[3], first[3])
    for alone, helped in zip(batches_from(first, 2, 6, workers=0), batches_from(first, 2, 6, workers=2), strict=True):
        assert_same_batch(helped, alone)
    other = batches(tmp_path, seed=1)[3].partner
    assert other is not None
    assert not torch.equal(other, first[3].partner)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_share_out_the_batch_of_one(tmp_path: Path, ranks: int) -> None:
    """Images, partners and what a method prepares are drawn by place in the global batch."""
    settings = {
        "augment": AugmentConfig(size=16, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5),
        "views": Crops(2, 8, [0.1, 0.5]),
    }
    alone = batches(tmp_path, **settings)[3]
    shares = [batches(tmp_path, rank=rank, world_size=ranks, **settings)[3] for rank in range(ranks)]
    assert [share.first for share in shares] == list(range(0, 8, 8 // ranks))
    joined = [{**tensors_of(share), **share.views} for share in shares]
    assert_same(
        {name: torch.cat([share[name] for share in joined]) for name in joined[0]}, {**tensors_of(alone), **alone.views}
    )
    assert not torch.equal(alone.image[0], alone.image[1])


def test_every_sample_comes_once_an_epoch_whatever_becomes_of_the_ranks(tmp_path: Path) -> None:
    """Three epochs of five steps; after each crash the steps since the last checkpoint are taken again, by other ranks."""
    taken: dict[int, list[str]] = {}
    for start, stop, ranks in ((0, 4, 2), (3, 7, 4), (6, 9, 1), (8, 15, 8)):
        shares = [batches(tmp_path, rank=rank, world_size=ranks, partners=False, prepare=None) for rank in range(ranks)]
        for step in range(start, stop):
            keys = [key for share in shares for key in share[step].keys]
            assert taken.setdefault(step, keys) == keys, "a step that is taken again has the same samples in the same places"
    epochs = [sorted(key for step in range(5 * epoch, 5 * epoch + 5) for key in taken[step]) for epoch in range(3)]
    assert epochs == [[f"{number:08}" for number in range(40)]] * 3
    assert taken[0] != taken[5]


def test_a_batch_is_the_same_without_partners(tmp_path: Path) -> None:
    """The augmentation of an image does not depend on whether partners are drawn beside it, nor on what a method prepares."""
    both, alone = batches(tmp_path)[3], batches(tmp_path, partners=False, prepare=None)[3]
    assert both.keys == alone.keys
    assert torch.equal(both.image, alone.image)
    assert (alone.partner, alone.texts) == (None, {})


def test_partners_share_the_entity_that_is_told(tmp_path: Path) -> None:
    """The samples are walls of four colours, each the entity of its image: partners have their image's colour."""
    batch = batches(tmp_path, augment=tiny.AUGMENT, batch_size=40)[0]
    assert batch.partner is not None
    assert batch.texts["entities"].tolist() == [1] * 40
    for image, partner, caption, length in zip(batch.image, batch.partner, batch.captions, batch.texts["shared"], strict=True):
        assert len(caption.split()[1]) == length
        torch.testing.assert_close(image.mean(dim=(1, 2)), partner.mean(dim=(1, 2)), atol=0.1, rtol=0)
        assert not torch.equal(image, partner)


def test_a_batch_takes_all_its_tensors_along(tmp_path: Path) -> None:
    moved = batches(tmp_path)[0].to(torch.device("meta"))
    assert moved.partner is not None
    assert {tensor.device.type for tensor in (moved.image, moved.tokens, moved.partner, *moved.texts.values())} == {"meta"}


@pytest.mark.parametrize(
    "about", [None, b"{}", b'{"entities": null}', b'{"entities": "dog"}', b"[]", b"not json", b"[" * 100_000]
)
def test_shards_without_entities_are_told_where_they_are_needed(tmp_path: Path, about: bytes | None) -> None:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for suffix, data in ((".jpg", b"image"), (".txt", b"a dog"), (".json", about)):
            if data is not None:
                member = tarfile.TarInfo(f"00000007{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert len(ShardReader([path])) == 1
    with pytest.raises(InputError, match=r"00000\.tar: sample 00000007 carries no list of entities"):
        ShardReader([path], entities=True)
