"""What tells two corpora apart, beside the same counted by hand from all of their rows."""

from collections import Counter
from pathlib import Path

import pytest

from filtering import InputError
from filtering.captions.corpus import FilterConfig, build_corpus, find_leakage
from filtering.captions.rules import DuplicateCaption, TooShort
from filtering.reports.corpus import write
from filtering.reports.corpus_difference import NOT_THERE, difference
from helpers.corpora import config_for, rows_in, write_links


def build(out: Path, config: FilterConfig) -> Path:
    write(out, build_corpus(config, out), find_leakage(config, out, {}), source=config.source.paths)
    return out


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the second one, the source lacks some links, one entity fewer is kept, and captions are longer."""
    home = tmp_path_factory.mktemp("corpora")
    lines = write_links(home / "links.tsv")
    (home / "fewer.tsv").write_text("\n".join(lines[50:]))
    one = build(home / "one", config_for(home / "links.tsv"))
    rules = (TooShort(min_words=7), DuplicateCaption())
    return one, build(home / "other", FilterConfig(**{**vars(config_for(home / "fewer.tsv")), "top_k": 2, "rules": rules}))


def test_captions_are_told_apart_with_the_reason(corpora: tuple[Path, Path]) -> None:
    found = difference(*corpora)
    kept = [{row["key"] for row in rows_in(corpus / "kept")} for corpus in corpora]
    dropped = [{row["key"]: row["drop_reason"] for row in rows_in(corpus / "dropped")} for corpus in corpora]
    one = Counter(dropped[1].get(key, NOT_THERE) for key in kept[0] - kept[1])
    other = Counter(dropped[0].get(key, NOT_THERE) for key in kept[1] - kept[0])
    assert found["captions"] == {"both": len(kept[0] & kept[1]), "only_one": dict(one), "only_other": dict(other)}
    assert {NOT_THERE, "rare_entity"} <= set(one)
    assert not found["same"]
    assert found["kept"] == [len(keys) for keys in kept]


def test_entities_rules_and_settings(corpora: tuple[Path, Path]) -> None:
    found = difference(*corpora)
    assert [row["entity"] for row in found["entities"]["only_one"]] == ["car"]
    assert found["entities"]["only_other"] == []
    changed = {row["entity"]: row["captions"] for row in found["entities"]["changed"]}
    counts = [Counter(name for row in rows_in(corpus / "kept") for name in row["entities"]) for corpus in corpora]
    assert changed == {name: [count[name] for count in counts] for name in ("dog", "cat")}
    assert found["settings"]["vocabulary.top_k"] == [3, 2]
    assert found["dropped"]["too_short"][0] < found["dropped"]["too_short"][1]
    assert found["dropped"]["markup"][1] == 0


def test_a_corpus_beside_itself_and_beside_none(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    found = difference(corpora[0], corpora[0])
    assert found["same"]
    assert found["captions"] == {"both": found["kept"][0], "only_one": {}, "only_other": {}}
    assert not found["settings"]
    assert not any(found["entities"].values())
    with pytest.raises(InputError, match=r"there is no finished corpus \(report\.json\); run filter\.py first$"):
        difference(corpora[0], tmp_path)
