"""Near-duplicates: MinHash values as datasketch's, nothing dropped without proof, little missed, in any order and crowd."""

import random

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash

from filtering import InputError
from filtering.captions.near_duplicates import (
    COMPARED,
    LARGEST_SET,
    RECALL,
    SIGNED,
    NearDuplicate,
    NearDuplicates,
    bands,
    confirm,
    sign,
    signatures,
)
from filtering.captions.text import normalised

VOCABULARY = [f"{first}{second}" for first in ("da", "le", "mo", "ri", "su", "ta") for second in map(str, range(150))]


def table_of(*captions: str) -> pa.Table:
    return pa.table({"key": [f"{row:06d}" for row in range(len(captions))], "caption": captions})


def dropped(config: NearDuplicates, table: pa.Table) -> list[str]:
    keys: list[str] = confirm(sign(table, config), config)["key"].to_pylist()
    return keys


def similarity(one: str, other: str, ngram: int = 1) -> float:
    sets = []
    for caption in (one, other):
        words = normalised(caption).split()
        sets.append({tuple(words[at : at + ngram]) for at in range(max(1, len(words) - ngram + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def varied_captions(seed: int, number: int) -> list[str]:
    """Captions of 3 to 20 words and variants of them: a word changed, another order, other punctuation, words appended."""
    draw = random.Random(seed)
    captions = []
    for _ in range(number):
        words = draw.sample(VOCABULARY, draw.randint(3, 20))
        captions.append(" ".join(words))
        for _ in range(draw.randint(0, 3)):
            changed = list(words)
            changed[draw.randrange(len(changed))] = draw.choice(VOCABULARY)
            captions.append(
                draw.choice(
                    [
                        " ".join(changed),
                        " ".join(draw.sample(words, len(words))),
                        ", ".join(words).upper() + "!",
                        " ".join([*words, draw.choice(VOCABULARY)]),
                    ]
                )
            )
    draw.shuffle(captions)
    return captions


@pytest.mark.parametrize("config", [NearDuplicates(), NearDuplicates(permutations=64, ngram=2, seed=7)])
def test_signatures_are_those_of_datasketch(config: NearDuplicates) -> None:
    captions = ["A dog's life, on a lawn!", "dog", "", "!!!", "straße der hunde", "one two three two one two", "<PERSON> waves"]
    found = signatures(pa.array(captions), config)
    assert found.dtype == np.uint32
    assert found.shape == (len(captions), config.permutations)
    for caption, values in zip(captions, found, strict=True):
        words = normalised(caption).split(" ")
        expected = MinHash(num_perm=config.permutations, seed=config.seed)
        expected.update_batch(
            " ".join(words[at : at + config.ngram]).encode() for at in range(max(1, len(words) - config.ngram + 1))
        )
        assert values.tolist() == expected.hashvalues.tolist()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_cut_for_the_threshold(threshold: float) -> None:
    config = NearDuplicates(threshold=threshold)
    assert 1 - (1 - threshold**config.rows) ** config.bands >= RECALL
    assert config.bands * config.rows <= config.permutations
    values = signatures(pa.array(["a red bus stops here"] * 2 + ["nothing in common"]), config)
    first, second, other = bands(values, config).tolist()
    assert first == second
    assert len(set(first)) == config.bands == len(other)
    assert not set(first) & set(other)


def test_drops_what_is_similar_to_a_smaller_key() -> None:
    table = table_of(
        "a red bus stops in front of the old town hall",
        "In front of the old town hall a red bus stops!",
        "a red bus stops in front of the new town hall today",
        "a red bus stops",
        "two dogs",
        "two dogs",
        "",
        "",
        "!!!",
    )
    assert dropped(NearDuplicates(), table) == ["000001", "000005", "000007"]
    assert dropped(NearDuplicates(threshold=0.7), table) == ["000001", "000002", "000005", "000007"]
    assert dropped(NearDuplicates(ngram=3), table) == ["000005", "000007"]


@pytest.mark.parametrize(
    "config", [NearDuplicates(), NearDuplicates(threshold=0.6), NearDuplicates(threshold=0.9, ngram=2, permutations=64)]
)
def test_against_all_pairs(config: NearDuplicates) -> None:
    captions = varied_captions(1, 120)
    true = {
        f"{later:06d}"
        for later, caption in enumerate(captions)
        if any(similarity(caption, earlier, config.ngram) >= config.threshold for earlier in captions[:later])
    }
    found = set(dropped(config, table_of(*captions)))
    assert found <= true
    assert len(found) >= RECALL * len(true) > 20


def test_neither_order_nor_buckets_matter() -> None:
    config = NearDuplicates()
    table = table_of(*varied_captions(2, 300))
    shuffled = table.take(pa.array(random.Random(3).sample(range(table.num_rows), table.num_rows)))
    signed = sign(shuffled, config)
    assert signed.schema == SIGNED
    assert confirm(sign(shuffled, config, home=5), config)["home"].unique().to_pylist() == [5]
    assert signed.num_rows == table.num_rows * config.bands
    bucket = signed["band"].to_numpy().view(np.uint64) % np.uint64(7)
    parts = [confirm(signed.filter(pa.array(bucket == number)), config)["key"].to_pylist() for number in range(7)]
    assert sorted(set().union(*parts)) == dropped(config, table)


def test_no_rows() -> None:
    config = NearDuplicates()
    assert sign(table_of("a dog").slice(1), config).schema == SIGNED
    assert dropped(config, table_of("a dog").slice(1)) == []
    assert dropped(config, table_of("a dog")) == []


def test_a_key_that_stands_twice_stays() -> None:
    twice = pa.concat_tables([table_of("two dogs on a lawn")] * 2)
    assert dropped(NearDuplicates(), twice) == []


def test_work_in_a_crowd_is_linear_and_copies_of_small_keys_are_found() -> None:
    rows = 20 * COMPARED
    sets = [np.array([row, row + 10**6], "<u4").tobytes() for row in range(rows)]
    sets[-1] = sets[0]
    crowd = pa.table([[1] * rows, [f"{row:06d}" for row in range(rows)], sets, [3] * rows], schema=SIGNED)
    assert confirm(crowd, NearDuplicates()).to_pylist() == [{"key": f"{rows - 1:06d}", "home": 3}]


def test_long_texts_are_compared_by_part_of_their_words() -> None:
    text = " ".join(f"word{number}" for number in range(3 * LARGEST_SET))
    table = table_of(text, text + " more", text.replace("word", "other"))
    assert max(map(len, sign(table, NearDuplicates())["shingles"].to_pylist())) == 4 * LARGEST_SET
    assert dropped(NearDuplicates(), table) == ["000001"]


def test_rule() -> None:
    rule = NearDuplicate(pa.array(["000001", "000007"]))
    assert rule.name == "near_duplicate"
    assert rule(table_of("a", "b", "c")).to_pylist() == [True, False, True]
    assert NearDuplicate(pa.array([], pa.string()))(table_of("a")).to_pylist() == [True]


@pytest.mark.parametrize(
    "settings", [{"threshold": 0}, {"threshold": 1.1}, {"permutations": 4}, {"permutations": 1000}, {"ngram": 0}, {"seed": -1}]
)
def test_values_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(settings))}: must "):
        NearDuplicates(**settings)  # type: ignore[arg-type]
