"""The report: hostile captions are inert, the page needs nothing beside it, its figures are right, same corpus same bytes."""

import json
import re
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from filtering.captions.corpus import FINDINGS
from filtering.captions.passes import BUILD
from filtering.captions.statistics import describe_shard, merge
from filtering.files import write_json, write_table
from filtering.reports import charts as report_charts
from filtering.reports import corpus as report
from filtering.schema import CORPUS, DROPPED, ENTITIES, key_of
from helpers.pages import Page

HOSTILE = [
    "<script>alert(1)</script> a dog",
    "{{ 7 * 7 }} {% raw %} a dog {# and no more #}",
    "</style></title></textarea><img src=x onerror=alert(1)> a dog",
    "\"><svg onload='alert(1)'> a dog",
    "a dog &lt;script&gt; &#60;b&#62; &amp;",
    "<!-- <b>a dog</b> --> ]]> {{constructor}} ${7*7} `x`",
    "</main></body></html><a href='javascript:alert(1)'>a dog</a>",
    "👩‍👩‍👧‍👦🐕 a dog 🏳️‍🌈",
    "\u202e a dog \u2066 backwards \u202a",
    "كلب يجري a dog שלום",
    "\0 a dog \x07\x1b[31m\x85\ufffe",
    "$x^2$ \\frac{dog}{2} %s {0}",
    " ".join(["dog"] * 60),
    "d" * 5000 + "og",
    "",
]
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "h1", "h2", "h3", "p", "div", "span",
    "table", "thead", "tbody", "tr", "th", "td", "ul", "ol", "li", "dl", "dt", "dd", "figure", "figcaption", "a", "i", "b",
    "em", "small", "strong", "code", "bdi", "svg", "rect", "line", "polyline", "circle", "text",
}  # fmt: skip


def leakage(rows: list[dict[str, Any]], leaks: dict[str, dict[str, str]], classes: dict[str, int]) -> dict[str, Any]:
    """What `find_leakage` would find."""

    def mentioning(entities: set[str]) -> int:
        return sum(not entities.isdisjoint(row["entities"]) for row in rows)

    captions = {name: mentioning({*found.values()}) for name, found in leaks.items()}
    every = {entity for found in leaks.values() for entity in found.values()}
    return {"leaks": leaks, "classes": classes, "captions": captions, "leaked": mentioning(every)}


def corpus(captions: list[str], **more: Any) -> dict[str, Any]:
    """What `report.write` is told of a corpus that keeps the captions with a dog in it; names are as hostile as captions."""
    rows = []
    for number, caption in enumerate(captions):
        url = f"https://pics.example/{number}.jpg?<script>"
        names = [name for name in ("dog", "cat") if name in caption]
        rows.append({"key": key_of(url, caption), "url": url, "caption": caption, "entities": names})
    kept = [row for row in rows if "dog" in row["entities"]]
    dropped = [{**row, "drop_reason": "rare_entity" if row["entities"] else "<b>rude</b>"} for row in rows if row not in kept]
    leaks = {"voc<b>": {"dog": "dog", "<i>cat</i>": "cat"}, "ade": {"lake": "water"}}
    statistics = merge(
        [describe_shard(pa.Table.from_pylist(kept, schema=CORPUS), pa.Table.from_pylist(dropped, schema=DROPPED))]
    )
    return {
        "summary": {
            "links": len(rows),
            "kept": len(kept),
            "dropped": statistics["rows"]["dropped"],
            "entities": 1,
            "digest": "0123abcd",
        },
        "statistics": statistics,
        "leakage": leakage(kept, leaks, {"voc<b>": 20, "ade": 150}),
        "details": {
            "list": {"name": "frequency", "top_k": 1, "min_count": 1},
            "matching": {"rejected": 1, "decided": 2, "tagged": 5, "sampled": 3},
            "config": {
                "rules": [{"name": "too_short", "min_words": 3}, {"name": "markup"}],
                "tagger": "/home/me/models/mine",
                "stop_words": ["<u>"],
                "exclude_benchmark_classes": False,
                "balance": None,
            },
            **more,
        },
    }


SOURCE = [
    "/home/me/links.tsv",
    "<b>more.tsv",
    "https://me:hunter2@host/2.parquet?key=hunter2",
    *(f"/{n}.tsv" for n in range(11)),
]


def write(
    out: Path, told: dict[str, Any], entities: tuple[tuple[str, int, bool], ...] = (("dog", 9, True), ("cat", 4, False))
) -> str:
    """The page of a corpus of which `entities` (name, count, kept) are known."""
    table = [
        {"entity": name, "count": count, "rank": rank, "kept": kept}
        for rank, (name, count, kept) in enumerate(entities, start=1)
    ]
    write_table(out / "entities.parquet", pa.Table.from_pylist(table, schema=ENTITIES))
    write_json(out / BUILD / FINDINGS, {"statistics": told["statistics"], "details": told["details"]})
    report.write(out, told["summary"], told["leakage"], source=SOURCE)
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=[HOSTILE[:8], HOSTILE[8:]])
def captions(request: pytest.FixtureRequest) -> list[str]:
    """Few enough to be shown all, with a dog and without."""
    chosen: list[str] = request.param
    return ["nothing", *chosen, *(caption.replace("dog", "cat") for caption in chosen if "dog" in caption)]


@pytest.fixture(scope="module")
def hostile(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("hostile"), corpus(captions))


def test_hostile_captions_are_inert(captions: list[str], hostile: str) -> None:
    page = Page(hostile)
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    shown = " ".join(page.text.split())
    for caption in captions:
        assert (caption if caption.isprintable() else "dog")[:200] in shown
    for name in ("<b>rude</b>", "voc<b>", "<u>", ".jpg?<script>"):
        assert name in shown


def test_no_control_or_direction_character_gets_through(hostile: str) -> None:
    left = set(hostile) - set(string.printable)
    assert not {char for char in left if ord(char) < 0xA0 or 0x202A <= ord(char) <= 0x202E or 0x2066 <= ord(char) <= 0x2069}
    assert not set("\0\x07\x1b\x85\ufffe") & set(hostile)


def test_page_needs_nothing_beside_it(hostile: str) -> None:
    page = Page(hostile)
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert len(ids) == sum("id" in attributes for _, attributes in page.elements)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "data", "action", "background", "xlink:href", "poster"} & attributes.keys()
        if "href" in attributes:
            assert tag == "a"
            assert (attributes["href"] or "").removeprefix("#") in ids
    assert not re.search(r"@import|url\(|expression\(", hostile)
    assert "default-src 'none'" in hostile


def test_the_source_is_named_without_its_folders_and_secrets(hostile: str) -> None:
    assert (
        "Made from links.tsv, <b>more.tsv, 2.parquet, 0.tsv, 1.tsv, 2.tsv, 3.tsv, 4.tsv and 6 more paths." in Page(hostile).text
    )
    assert "hunter2" not in hostile


def test_same_corpus_same_bytes_and_no_trace_of_the_machine(tmp_path: Path) -> None:
    captions = [f"a dog {number}" for number in range(30)] + [f"no such thing {number}" for number in range(30)]
    for name in ("one", "two"):
        write(tmp_path / name, corpus(captions if name == "one" else captions.copy()))
    for file in ("report.html", "report.json", "report.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    for file in ("report.html", "report.json"):
        written = (tmp_path / "one" / file).read_text()
        assert "/home/me" not in written
        assert str(tmp_path) not in written
    assert "mine" in (tmp_path / "one" / "report.json").read_text()
    assert not list(tmp_path.rglob("*.tmp"))


def test_leakage_by_hand(tmp_path: Path) -> None:
    """Of four kept captions two mention a class of voc, one of them both classes; ade's class is in no kept caption."""
    kept = [["dog", "cat"], ["dog"], ["tree"], ["tree"]]
    rows = [{"key": f"{at:024x}", "url": "", "caption": "x", "entities": names} for at, names in enumerate(kept)]
    leaks = {"voc": {"dog": "dog", "cat": "cat", "sheep": "sheep"}, "ade": {"lake": "water"}}
    told = corpus(["a dog"])
    told["leakage"] = leakage(rows, leaks, {"voc": 20, "ade": 150})
    told["statistics"] = describe_shard(pa.Table.from_pylist(rows, schema=CORPUS), DROPPED.empty_table())
    told["summary"] |= {"links": 4, "kept": 4, "dropped": {}, "entities": 4}
    page = write(
        tmp_path, told, (("dog", 2, True), ("tree", 2, True), ("cat", 1, True), ("water", 0, True), ("sheep", 0, False))
    )
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["leakage"]["any"] == {"in_list": 3, "captions": 2, "share": 0.5}
    voc, ade = content["leakage"]["benchmarks"]["voc"], content["leakage"]["benchmarks"]["ade"]
    assert (voc["in_list"], voc["classes"], voc["captions"], voc["share"]) == (2, 20, 2, 0.5)
    assert [row["class"] for row in voc["names"]] == ["dog", "cat"]
    assert [row["captions"] for row in voc["names"]] == [2, 1]
    assert (ade["in_list"], ade["captions"], ade["share"]) == (1, 0, 0)
    assert ade["names"] == [{"class": "lake", "entity": "water", "captions": 0}]
    assert "2 of 20" in page
    assert "lake → water" in page
    numbers = report.numbers(content)
    assert (numbers["leakage/voc"], numbers["leakage_classes/voc"], numbers["leakage/any"]) == (0.5, 2.0, 0.5)
    assert all(isinstance(value, float) for value in numbers.values())


def test_classes_that_were_excluded_are_shown_apart(tmp_path: Path) -> None:
    told = corpus(["a dog", "a cat"])
    told["details"]["config"]["exclude_benchmark_classes"] = True
    told["leakage"] = leakage([], {"ade": {"feline": "cat", "lake": "water"}}, {"ade": 150})
    page = write(tmp_path, told, (("cat", 9, False), ("dog", 5, True), ("tree", 3, False), ("water", 2, False)))
    content = json.loads((tmp_path / "report.json").read_text())
    assert [row["entity"] for row in content["left_out"]] == ["cat"]
    assert [row["entity"] for row in content["next_in_line"]] == ["tree"]
    assert "Left out, since a benchmark tests them" in page


def test_nothing_dropped_nothing_leaked(tmp_path: Path) -> None:
    told = corpus(["a dog", "two dogs"], matching={"rejected": 0, "decided": 0, "tagged": 2, "sampled": 2})
    told["leakage"] = leakage([], {}, {})
    page = write(tmp_path, told, (("dog", 2, True),))
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["funnel"] == []
    assert content["leakage"]["benchmarks"] == {}
    assert content["samples"]["dropped"] == {}
    assert "No benchmarks were given" in page
    assert "every count below is exact" in page


def test_nothing_that_passed_the_rules(tmp_path: Path) -> None:
    told = corpus(["", "nothing"], matching={"rejected": 0, "decided": 0, "tagged": 0, "sampled": 0})
    page = write(tmp_path, told)
    assert "No caption passed the rules" in page
    assert "OVSegmentor" not in page


def test_paper_words_need_no_tagger(tmp_path: Path) -> None:
    page = write(tmp_path, corpus(["a dog"], list={"name": "paper", "merge": True, "match": "script"}))
    assert "as OVSegmentor's script reads them" in page
    assert "read by the tagger" not in page


def test_balance_is_drawn(tmp_path: Path) -> None:
    told = corpus(["a dog"])
    assert 'class="limit"' not in write(tmp_path, told)
    told["details"]["config"]["balance"] = {"per_entity": 20_000, "seed": 0}
    page = write(tmp_path, told)
    assert 'class="limit"' in page
    assert "dashed is the balance (20,000)" in page


def test_funnel_ends_at_the_kept_rows(tmp_path: Path) -> None:
    told = corpus(["a dog", "a cat", "nothing"])
    write(tmp_path, told)
    content = json.loads((tmp_path / "report.json").read_text())
    assert [step["rule"] for step in content["funnel"]] == list(told["summary"]["dropped"])
    assert content["funnel"][-1]["left"] == content["kept"] == 1
    assert content["distributions"]["hosts"]["most"] == [{"host": "pics.example", "links": 3, "kept": 1}]


def test_histogram_folds_its_tail_and_drops_no_row() -> None:
    before, after = [0, 50, 100, 50, *[0] * 50, 1], [0, 10, 20, 10, *[0] * 50, 0]
    svg = report_charts.histogram(before, after, axis="words", label="words", first=1)
    assert ">3+<" in svg
    assert svg.count('class="before"') == svg.count('class="after"') == 3
    empty = report_charts.histogram([0] * 10, [0] * 10, axis="words", label="words", first=1)
    assert "<rect" not in empty
    assert "nan" not in report_charts.ranks([], [], None, axis="rank", label="none")
