"""Statistics of a corpus: parts merge to the whole in any order, figures are right, size is bounded, rows are drawn by key."""

import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from filtering.captions.statistics import HOST_SAMPLE, LONGEST_TEXT, MOST_WORDS, SAMPLES, describe_shard, merge
from filtering.schema import CORPUS, DROPPED, SAMPLE, key_of

NOUNS = ("dog", "cat", "red car", "tree", "person")


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    made = []
    for number in range(count):
        names = draw.sample(NOUNS, draw.randrange(4))
        caption = " ".join(["a"] * draw.randrange(12)) + " ".join(names)
        url = f"https://host{draw.randrange(9)}.example/{number % (count - 20)}.jpg"
        reason = None if names else draw.choice(["too_short", "no_entity"])
        made.append({"key": key_of(url, caption), "url": url, "caption": caption, "entities": names, "drop_reason": reason})
    return made


def tables(made: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    kept = [row for row in made if row["drop_reason"] is None]
    dropped = [row for row in made if row["drop_reason"] is not None]
    return pa.Table.from_pylist(kept, schema=CORPUS), pa.Table.from_pylist(dropped, schema=DROPPED)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_merge_to_the_whole_in_any_order(parts: int) -> None:
    made = rows(12_000)
    whole = describe_shard(*tables(made))
    assert len(whole["hosts"]) == HOST_SAMPLE < len(made)
    for seed in range(3):
        draw = random.Random(seed)
        draw.shuffle(made)
        piles: list[list[dict[str, Any]]] = [[] for _ in range(parts)]
        for row in made:
            draw.choice(piles).append(row)
        described = [json.loads(json.dumps(describe_shard(*tables(pile)))) for pile in piles]
        draw.shuffle(described)
        assert merge(described) == whole
    assert json.dumps(merge([whole])) == json.dumps(whole)


def test_figures_are_those_of_a_plain_count() -> None:
    made = rows(500)
    found = describe_shard(*tables(made))
    kept = [row for row in made if row["drop_reason"] is None]
    assert found["rows"] == {
        "kept": len(kept),
        "dropped": dict(sorted(Counter(row["drop_reason"] for row in made if row["drop_reason"]).items())),
    }
    for when, those in (("before", made), ("after", kept)):
        counted = Counter(len(row["caption"].split()) for row in those)
        assert found["words"][when] == [counted[size] for size in range(MOST_WORDS + 1)]
    sizes = Counter(len(row["entities"]) for row in kept)
    assert found["entities_per_caption"][:5] == [sizes[size] for size in range(5)]
    assert found["entities"] == dict(sorted(Counter(name for row in kept for name in row["entities"]).items()))


def test_nothing_gives_nothing() -> None:
    empty = describe_shard(CORPUS.empty_table(), DROPPED.empty_table())
    assert empty["rows"] == {"kept": 0, "dropped": {}}
    assert merge([empty, empty]) == empty
    made = rows(50)
    assert merge([empty, describe_shard(*tables(made))]) == describe_shard(*tables(made))
    assert merge([])["hosts"] == []


def test_many_hosts_and_endless_texts_stay_small() -> None:
    many = 100_000
    keys = [key_of(str(number), "") for number in range(many)]
    kept = pa.table(
        {
            "key": keys,
            "url": [f"https://{'w' * 300}{number}.example/x.jpg" for number in range(many)],
            "caption": ["a dog"] * (many - 20) + ["dog " * 50_000] * 20,
            "entities": pa.array([["dog"]] * many, CORPUS.field("entities").type),
        },
        CORPUS,
    )
    found = describe_shard(kept, DROPPED.empty_table())
    assert len(json.dumps(found)) < 1_000_000
    assert len(found["hosts"]) == HOST_SAMPLE
    assert found["words"]["after"][MOST_WORDS] == 20
    longest = describe_shard(kept.slice(many - 20), DROPPED.empty_table())
    assert max(len(row["caption"]) for row in longest["samples"]["kept"]) == LONGEST_TEXT
    assert len(json.dumps(merge([found, longest]))) < 1_000_000


def test_samples_have_the_smallest_keys_one_of_each() -> None:
    made = [row for row in rows(400) for _ in range(3)]  # every link three times
    found = describe_shard(*tables(made))
    for reason in ("too_short", "no_entity"):
        keys = sorted({row["key"] for row in made if row["drop_reason"] == reason})
        assert [row["key"] for row in found["samples"]["dropped"][reason]] == keys[:SAMPLES]


def test_rows_of_tars_show_where_their_image_lies() -> None:
    kept, dropped = tables(rows(30))
    places = pa.array([f"shards/00000.tar::{number}" for number in range(kept.num_rows)])
    kept = kept.append_column(SAMPLE, places).set_column(1, "url", pa.nulls(kept.num_rows, pa.string()))
    dropped = dropped.append_column(SAMPLE, pa.nulls(dropped.num_rows, pa.string()))
    found = describe_shard(kept, dropped)
    assert found["samples"]["kept"][0]["sample"].startswith("shards/00000.tar::")
    assert found["samples"]["kept"][0]["url"] == ""
    assert sum(line.split(" ")[1] == "" for line in found["hosts"]) == len(set(kept["key"].to_pylist()))


def test_hosts_are_read_from_addresses_of_all_kinds() -> None:
    urls = {
        "https://Pics.Example/a b": "pics.example",
        "http://user:secret@pics.example:8080/x": "pics.example",
        "http://pics.example?x=1": "pics.example",
        "ftp://[::1]:80/": "[::1]",
        "no address": "",
        "https://пример.example/я": "пример.example",
    }
    made = [{"key": key_of(url, ""), "url": url, "caption": "x", "entities": [], "drop_reason": "bad_url"} for url in urls]
    found = describe_shard(*tables(made))
    hosts = {line.split(" ")[0]: line.split(" ")[1] for line in found["hosts"]}
    assert {url: hosts[key_of(url, "")] for url in urls} == urls


def test_a_link_that_was_kept_once_counts_as_kept() -> None:
    made = [row for row in rows(50) if row["drop_reason"] is None]
    copies = [{**row, "drop_reason": "duplicate_link"} for row in made]
    found = describe_shard(*tables(made + copies))
    assert len(found["hosts"]) == len({row["key"] for row in made})
    assert all(line.endswith(" kept") for line in found["hosts"])
    apart = [describe_shard(*tables(pile)) for pile in (copies, made)]
    assert merge(apart) == found == merge(reversed(apart))


def test_the_lot_is_fair() -> None:
    """A host that serves a fifth of 50,000 links serves about a fifth of the lot: four standard errors are 2.5 points."""
    draw = np.random.default_rng(0)
    made = [
        f"https://{'often' if one < 0.2 else f'rare{number}'}.example/{number}"
        for number, one in enumerate(draw.random(50_000))
    ]
    keys = [key_of(url, "") for url in made]
    table = pa.table(
        {"key": keys, "url": made, "caption": [""] * len(made), "entities": pa.nulls(len(made), pa.list_(pa.string()))}
    )
    found = describe_shard(table, DROPPED.empty_table())
    share = sum(" often.example" in line for line in found["hosts"]) / HOST_SAMPLE
    assert abs(share - 0.2) < 0.025


def test_samples_do_not_spread_personal_data() -> None:
    captions = {"email_address": "write to jo.doe@mail.example today", "phone_number": "call (402) 505-6600 now"}
    dropped = [
        {"key": key_of("", caption), "url": "", "caption": caption, "entities": [], "drop_reason": reason}
        for reason, caption in captions.items()
    ]
    samples = describe_shard(*tables(dropped))["samples"]["dropped"]
    assert samples["email_address"][0]["caption"] == "write to •@• today"
    assert samples["phone_number"][0]["caption"] == "call (•••) •••-•••• now"
