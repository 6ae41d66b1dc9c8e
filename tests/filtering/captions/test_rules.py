"""Every caption rule on captions that it must keep and drop, against its plain definition, and what all rules share."""

import random
import typing
from collections.abc import Mapping, Sized

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from filtering import InputError
from filtering.captions.caption_counts import with_counts
from filtering.captions.row_rules import ColumnRule
from filtering.captions.rules import (
    DEFAULT_RULES,
    BadUrl,
    Boilerplate,
    DuplicateCaption,
    DuplicateLink,
    EmailAddress,
    FewLetters,
    Markup,
    NotEnglish,
    PhoneNumber,
    Repetition,
    RuleConfig,
    TooLong,
    TooShort,
)
from filtering.schema import LINKS, SAMPLE, key_of
from filtering.shards import mark, split
from filtering.url import is_url
from helpers.strange_captions import strange_captions

RULES = [rule for rule in typing.get_args(RuleConfig) if rule is not ColumnRule]
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
    "a" * 100_000 + "@",
    "1 " * 20_000,
    "+1." * 20_000,
]


def links(*captions: str, url: str = "http://a.example/1.jpg") -> pa.Table:
    return pa.Table.from_pylist([{"key": key_of(url, one), "url": url, "caption": one} for one in captions], schema=LINKS)


def kept_by(rule: RuleConfig, *captions: str) -> list[bool]:
    return typing.cast("list[bool]", rule(links(*captions)).to_pylist())


KEEP = {
    BadUrl: ["anything"],
    TooShort: ["a red bus", "two dogs' bowls", "<PERSON> rides a bike"],
    TooLong: ["word " * 60],
    FewLetters: ["the fish (2010)", "3 cats & 2 dogs", "1980 Jeep CJ-7 for sale 101359225", "собака бежит"],
    Repetition: [
        "the dog and the cat and the cow in the barn",
        "a dog",
        "very very very good dog",
        "A red ball , a blue ball and a red and blue ball lie on a lawn .",
        "A man with a hat holding a photo of himself holding a photo of himself ad infinitum.",
        "a boy in a red shirt and a boy in a blue shirt chase a boy in a green shirt",
        "rugby league team vs rugby league team .",
        "Red ball , blue ball and red and blue ball on lawn .",
        "Vol. 111111111 of a series",
    ],
    Markup: [
        "<PERSON> and <PERSON> on a beach",
        "dogs < cats",
        "a <3 for dogs",
        "3.5 x 2.5 m rug",
        "cat & dog",
        "U.S. com center",
        "a cap of example.com",
        "A man in an example.org t-shirt holds a sign .",
        "Two girls stand under the sign of shoes.net",
        "a sign says [I love you] <left> and <right>",
    ],
    Boilerplate: [
        "a click beetle here",
        "a person may contain multitudes",
        "read the moreish book",
        "A protester holds a sign up in the air .",
        "Children read more than one book",
    ],
    EmailAddress: ["dinner @ home", "a dog @park", "@ the beach. really"],
    PhoneNumber: [
        "1994 1995 1996-2003 front tire",
        "2019-01-27 river 00187",
        "a wedding on 20.05.2017 - 64",
        "978-0-340-82975-2 and 0-306-40615-2",
        "9780340829752: a dark tower",
        "stock photo of a phone - 14600135",
        "iPhone 5 6 7 8 10 11 12 case",
        "house for $1,234,567.00",
        "200 x 300 x 1500 mm table",
        "05 06 07 2008 2009 Ford",
        "Code: 600-06382904",
        "call of duty 2 2009",
        "at 12:30-14:00 2010",
    ],
    NotEnglish: [
        "sunset beach",
        "Brown bears, Katmai National Park",
        "crème brûlée with berries",
        "dog",
        "yellow labrador",
        "A man windsurfs in a drysuit .",
        "Kitesurfers freeride near paragliders",
        "Lana Del Rey on the stage",
        "Kevin Garnett and Lamar Odom",
        "Floyd Mayweather Jr. VS Miguel Cotto",
        "a busker in Plaza de la Puerta del Sol , Madrid , plays the accordion",
        "men's jackets",
    ],
    DuplicateLink: ["a dog", "a cat"],
    DuplicateCaption: ["a dog", "a dog runs"],
}
DROP = {
    TooShort: ["", "dog", "a dog", "DSC-1234 !!!", "<PERSON> <PERSON> <PERSON>"],
    TooLong: ["word " * 61],
    FewLetters: ["", "9780340829752: 12", "2018-01-02 #5566 a", "★ ★ ★ ★ ab"],
    Repetition: ["vector image dog vector image vector image", "sooooooooo cute dog", "new new new dog new new",
                 "shoes shoes cheap shoes buy shoes", "red dress, long red dress, red evening dress, evening dress red",
                 "only a promise of happiness the place of beauty only a promise of happiness the place of beauty",
                 "Kitchen Table And Chairs - Kitchen Table And Chairs Set - Kitchen Table Set"],
    Markup: ["<b>dog</b> house", "a dog http://a.example", "see www.dogs.example", "dog.jpg", "IMG_1234 dog", "dog<br>cat",
             "{{caption}} dog", "visit dogs.com today", "&nbsp; a dog &foo; dog", "[img]dog", "Red Dress | dresses.com",
             "Buy a red dress at dresses.com",
             "Pasta Salad from www.pasta.org", "<div class='meta'>a dog", "a dog on the sofa.jpeg"],
    Boilerplate: ["Image may contain: dog, outdoor", "Click here to see a dog", "Read more about dogs",
                  "a dog, FREE SHIPPING!", "No image available"],
    EmailAddress: ["mail bob@dogs.example for a dog", "dogs @ pets.co.uk"],
    PhoneNumber: ["call 850 - 244 - 5117", "info +30 697 435 0179 at the beach", "tel: 020 7946 0958", "(415) 744-8666",
                  "415.744.8666", "1 800 555 1234", "0330 123 4567", "(02) 1234 5678", "whatsapp +91 98765 43210",
                  "Call @ 02261054600 - price", "☏ 911 014 146", "0044 20 7946 0958", "Phone: 555-1234"],
    NotEnglish: ["собака бежит по траве", "a dog 狗在草地上跑步跑步", "ein schöner Tag im Garten mit der Familie",
                 "una casa en la playa de mi abuela", "Le village d'Eguisheim en Alsace",
                 "Luzes decorativas da cortina do casamento",
                 "roos en lieke zitten op de fiets", "qwrt zxcv bnmp"],
}  # fmt: skip
DROP_LAST = {
    BadUrl: pa.concat_tables([links("a dog"), links("a cat", url="dog.jpg")]),
    DuplicateLink: pa.concat_tables([links("a dog", "a cat"), links("a dog")]),
    DuplicateCaption: pa.concat_tables([links("a dog"), links("A dog!", url="http://a.example/2.jpg")]),
}
"""For rules that look at more than a caption: tables whose last row they drop, and no other."""


def without_example(*examples: Mapping[type[RuleConfig], Sized]) -> list[type[RuleConfig]]:
    """The rules for which none of `examples` holds anything."""
    return [rule for rule in RULES if not any(len(those.get(rule, ())) for those in examples)]


def test_every_rule_has_captions_that_it_keeps_and_that_it_drops() -> None:
    assert without_example(KEEP) == []
    assert without_example(DROP, DROP_LAST) == []


@pytest.mark.parametrize("rule", RULES)
def test_the_test_above_sees_a_rule_without_example(rule: type[RuleConfig]) -> None:
    for examples in (KEEP, {**DROP, **DROP_LAST}):
        assert without_example({**examples, rule: []}) == [rule]
        assert without_example({other: those for other, those in examples.items() if other is not rule}) == [rule]


@pytest.mark.parametrize("rule", RULES)
def test_keeps(rule: type[RuleConfig]) -> None:
    assert [caption for caption, kept in zip(KEEP[rule], kept_by(rule(), *KEEP[rule]), strict=True) if not kept] == []


@pytest.mark.parametrize("rule", DROP)
def test_drops(rule: type[RuleConfig]) -> None:
    assert [caption for caption, kept in zip(DROP[rule], kept_by(rule(), *DROP[rule]), strict=True) if kept] == []


@pytest.mark.parametrize("rule", DROP_LAST)
def test_drops_the_last_row_alone(rule: type[RuleConfig]) -> None:
    table = DROP_LAST[rule]
    assert rule()(table).to_pylist() == [True] * (len(table) - 1) + [False]


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


def test_names_are_unique_and_defaults_hold_no_rule_twice() -> None:
    assert len({rule().name for rule in RULES}) == len(RULES)
    assert len({rule.name for rule in DEFAULT_RULES}) == len(DEFAULT_RULES)


def test_bad_url() -> None:
    table = pa.concat_tables([links("a dog", url=url) for url in ("", "dog.jpg", "http://a.example/1", "ftp://a.example/1")])
    assert BadUrl()(table).to_pylist() == [False, False, True, False]
    samples = pa.array(["a.tar::0", None, None, "a.tar::1"], pa.string())
    assert BadUrl()(table.append_column(SAMPLE, samples)).to_pylist() == [True, False, True, True]


def test_urls_are_judged_as_is_url_does() -> None:
    draw = random.Random(0)
    pieces = [*"aB1.-_:/?#@[] é\n\t", "http://", "https://", "HTTP://", "a.example", "[::1]", ":80", ":123456", "/x" * 1100]
    urls = ["".join(draw.choices(pieces, k=draw.randint(0, 6))) for _ in range(4000)]
    urls += ["http://" + url for url in urls]
    assert BadUrl()(pa.table({"url": urls})).to_pylist() == list(map(is_url, urls))
    assert sum(map(is_url, urls)) > 200


def test_counts_stay_with_their_rows_and_change_no_decision() -> None:
    table = links(*strange_captions(500), *KEEP[NotEnglish], *DROP[NotEnglish])
    counted = with_counts(table)
    rows = pa.array(random.Random(1).sample(range(table.num_rows), 200))
    some = pc.equal(pc.bit_wise_and(pa.array(range(table.num_rows)), 1), 0)
    for rule in DEFAULT_RULES:
        for choose in (lambda t: t, lambda t: t.take(rows), lambda t: t.filter(some), lambda t: t.slice(100, 50)):
            assert rule(choose(counted)).to_pylist() == rule(choose(table)).to_pylist()


def test_null_reads_as_an_empty_caption() -> None:
    table = pa.table(
        {"key": pa.array([None], pa.string()), "url": pa.array([None], pa.string()), "caption": pa.array([None], pa.string())}
    )
    for rule in DEFAULT_RULES:
        assert rule(table).to_pylist() == rule(links("", url="")).to_pylist()


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
