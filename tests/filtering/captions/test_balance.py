"""Balancing: the head is thinned out to about t captions an entity, the tail stays, and the lot falls the same everywhere."""

import random
from itertools import pairwise

import pyarrow as pa
import pytest

from filtering import InputError
from filtering.captions.balance import Balance
from filtering.schema import CORPUS, key_of

HEAD, MIDDLE, TAIL = 20_000, 4_000, 300
T = 1_000


def corpus() -> pa.Table:
    """Captions with a man (20,000), a dog (4,000) or a walrus (300); 2,000 have man and dog, 100 walrus and man."""
    rows = [["man"]] * 17_900 + [["dog"]] * 2_000 + [["walrus"]] * 200 + [["man", "dog"]] * 2_000 + [["walrus", "man"]] * 100
    random.Random(0).shuffle(rows)
    keys = [key_of("http://a.example", str(row)) for row in range(len(rows))]
    entities = pa.array(rows, CORPUS.field("entities").type)
    return pa.table({"key": keys, "entities": entities})


COUNTS = {"man": HEAD, "dog": MIDDLE, "walrus": TAIL}


def kept(table: pa.Table, per_entity: int = T, seed: int = 0) -> set[str]:
    return set(table.filter(Balance(per_entity=per_entity, seed=seed).rule(COUNTS)(table))["key"].to_pylist())


def of(table: pa.Table, *entities: str) -> set[str]:
    return {row["key"] for row in table.to_pylist() if row["entities"] == list(entities)}


def test_the_head_is_thinned_out_and_the_tail_stays() -> None:
    table = corpus()
    left = kept(table)
    assert of(table, "walrus") | of(table, "walrus", "man") <= left
    for entities, chance in (
        (["man"], T / HEAD),
        (["dog"], T / MIDDLE),
        (["man", "dog"], 1 - (1 - T / HEAD) * (1 - T / MIDDLE)),  # the draws of a caption's entities are independent
    ):
        rows = of(table, *entities)
        spread = (len(rows) * chance * (1 - chance)) ** 0.5
        assert abs(len(rows & left) - len(rows) * chance) < 4 * spread


def test_the_lot_depends_on_key_and_entity_alone() -> None:
    table = corpus()
    left = kept(table)
    shuffled = table.take(pa.array(random.Random(1).sample(range(table.num_rows), table.num_rows)))
    assert kept(shuffled) == left
    assert set().union(*(kept(table.slice(start, 5000)) for start in range(0, table.num_rows, 5000))) == left
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7, 0), table.slice(7)])
    assert kept(chunked) == left


def test_another_seed_keeps_other_captions() -> None:
    table = corpus()
    men = of(table, "man")
    first, second = kept(table) & men, kept(table, seed=1) & men
    expected = len(men) * (T / HEAD) ** 2
    assert abs(len(first & second) - expected) < 4 * expected**0.5


def test_what_stays_for_a_small_t_stays_for_a_larger_one() -> None:
    table = corpus()
    sizes = [100, 1_000, 2_000, 4_000, 10_000, 20_000]
    sets = [kept(table, per_entity) for per_entity in sizes]
    assert all(small < large for small, large in pairwise(sets))
    assert len(sets[-1]) == table.num_rows


def test_edges() -> None:
    rule = Balance().rule({})
    assert rule.name == Balance.name == "balanced"
    table = corpus().slice(0, 3).append_column("caption", pa.array(["a", "b", "c"]))
    assert rule(table).to_pylist() == [True] * 3  # entities that were never counted are no head
    assert len(rule(table.slice(0, 0))) == 0
    assert rule(pa.table({"key": ["k"], "entities": pa.array([[]], pa.list_(pa.string()))})).to_pylist() == [False]
    with pytest.raises(InputError, match=r"^per_entity: must be at least 1, not 0$"):
        Balance(per_entity=0)
