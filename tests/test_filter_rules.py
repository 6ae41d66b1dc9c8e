"""Every caption rule on captions that it must keep and drop, and what all rules have in common."""

import typing

import pyarrow as pa
import pytest

from filtering.rules import (
    DEFAULT_RULES,
    BadUrl,
    Boilerplate,
    DuplicateCaption,
    DuplicateLink,
    EmailAddress,
    FewLetters,
    Markup,
    NotEnglish,
    Repetition,
    RuleConfig,
    TooLong,
    TooShort,
)
from filtering.schema import LINKS, key_of
from filtering.stage import InputError, mark, split

RULES = typing.get_args(RuleConfig)
HOSTILE = [
    "",
    " ",
    "\0",
    "a" * 100_000,
    "🐕" * 500,
    "\ud7ff",
    "<" * 2000,
    "&" * 2000,
    "a@" * 5000,
    "[url" * 3000,
    "' " * 3000,
    "-" * 5000,
]


def links(*captions: str, url: str = "http://a.example/1.jpg") -> pa.Table:
    return pa.Table.from_pylist([{"key": key_of(url, one), "url": url, "caption": one} for one in captions], schema=LINKS)


def kept_by(rule: RuleConfig, *captions: str) -> list[bool]:
    return typing.cast("list[bool]", rule(links(*captions)).to_pylist())


KEEP = {
    BadUrl: ["anything"],
    TooShort: ["a red bus", "two dogs' bowls", "<PERSON> rides a bike"],
    TooLong: ["word " * 60],
    FewLetters: ["the fish (2010)", "3 cats & 2 dogs", "собака бежит"],
    Repetition: [
        "the dog and the cat and the cow in the barn",
        "a dog",
        "very very very good dog",
        "Vol. 111111111 of a series",
    ],
    Markup: [
        "<PERSON> and <PERSON> on a beach",
        "dogs < cats",
        "a <3 for dogs",
        "3.5 x 2.5 m rug",
        "cat & dog",
        "U.S. com center",
    ],
    Boilerplate: ["a click beetle here", "a person may contain multitudes", "read the moreish book"],
    EmailAddress: ["dinner @ home", "a dog @park", "@ the beach. really"],
    NotEnglish: [
        "sunset beach",
        "Brown bears, Katmai National Park",
        "crème brûlée with berries",
        "dog",
        "yellow labrador",
        "men's jackets",
    ],
    DuplicateLink: ["a dog", "a cat"],
    DuplicateCaption: ["a dog", "a dog runs"],
}
DROP = {
    TooShort: ["", "dog", "a dog", "DSC-1234 !!!", "<PERSON> <PERSON> <PERSON>"],
    TooLong: ["word " * 61],
    FewLetters: ["", "9780340829752: 12", "2018-01-02 #5566 a", "★ ★ ★ ★ ab"],
    Repetition: ["vector image dog vector image vector image", "sooooooooo cute dog", "new new new dog new new"],
    Markup: ["<b>dog</b> house", "a dog http://a.example", "see www.dogs.example", "dog.jpg", "IMG_1234 dog", "dog<br>cat",
             "{{caption}} dog", "visit dogs.com today", "&nbsp; a dog &foo; dog"],
    Boilerplate: ["Image may contain: dog, outdoor", "Click here to see a dog", "a dog, FREE SHIPPING!", "No image available"],
    EmailAddress: ["mail bob@dogs.example for a dog", "dogs @ pets.co.uk"],
    NotEnglish: ["собака бежит по траве", "a dog 狗在草地上跑步跑步", "ein schöner Tag im Garten mit der Familie",
                 "una casa en la playa de mi abuela", "roos en lieke zitten op de fiets", "qwrt zxcv bnmp"],
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_keeps(rule: type[RuleConfig]) -> None:
    assert [caption for caption, kept in zip(KEEP[rule], kept_by(rule(), *KEEP[rule]), strict=True) if not kept] == []


@pytest.mark.parametrize("rule", DROP)
def test_drops(rule: type[RuleConfig]) -> None:
    assert [caption for caption, kept in zip(DROP[rule], kept_by(rule(), *DROP[rule]), strict=True) if kept] == []


@pytest.mark.parametrize("rule", RULES)
def test_any_rule_takes_any_caption(rule: type[RuleConfig]) -> None:
    table = links(*HOSTILE)
    before = table.to_pylist()
    mask = rule()(table)
    assert mask.type == pa.bool_()
    assert len(mask) == len(HOSTILE)
    assert mask.null_count == 0
    assert rule()(table) == mask
    assert table.to_pylist() == before
    assert len(rule()(links())) == 0


def test_names_are_unique_and_defaults_hold_each_rule_once() -> None:
    assert len({rule().name for rule in RULES}) == len(RULES)
    assert {type(rule) for rule in DEFAULT_RULES} == set(RULES)


def test_bad_url() -> None:
    table = pa.concat_tables([links("a dog", url=url) for url in ("", "dog.jpg", "http://a.example/1", "ftp://a.example/1")])
    assert BadUrl()(table).to_pylist() == [False, False, True, False]


def test_duplicates() -> None:
    table = pa.concat_tables([links("A dog!"), links("a dog", url="http://a.example/2"), links("A dog!"), links("a cat")])
    assert DuplicateLink()(table).to_pylist() == [True, True, False, True]
    assert DuplicateCaption()(table).to_pylist() == [True, False, False, True]
    assert DuplicateCaption(copies=2)(table).to_pylist() == [True, True, False, True]


def test_mark_keeps_every_row_and_names_the_first_rule() -> None:
    table = links("a red bus stops", "bus", "<hr>bus")
    marked = mark(table, [TooShort(), Markup()])
    assert marked["drop_reason"].to_pylist() == [None, "too_short", "too_short"]
    kept, dropped = split(marked)
    assert kept.column_names == LINKS.names
    assert kept.num_rows + dropped.num_rows == table.num_rows


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (TooShort, {"min_words": 0}),
        (TooLong, {"max_words": 0}),
        (FewLetters, {"min_share": 1.5}),
        (Repetition, {"min_distinct": -0.1}),
        (Repetition, {"max_run": 0}),
        (NotEnglish, {"min_ascii": 2}),
        (NotEnglish, {"min_known": -1}),
        (DuplicateCaption, {"copies": 0}),
    ],
)
def test_values_out_of_range(rule: type[RuleConfig], settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(settings))}: "):
        rule(**settings)  # type: ignore[arg-type]
