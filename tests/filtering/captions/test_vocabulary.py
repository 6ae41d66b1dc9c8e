"""The ways to choose which entities are kept: by frequency, the paper's words, and a file of one's own."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from spacy.language import Language

from filtering import InputError
from filtering.captions.lexicon import Lexicon, load_lexicon, spelling
from filtering.captions.tagger import load_tagger
from filtering.captions.vocabulary import FileList, FrequencyList, ListConfig, PaperList

COUNTS = {"dog": 3, "cat": 5, "ant": 3, "bee": 1, "cow": 2}
Write = Callable[[str], FileList]


def kept(entities: ListConfig, top_k: int = 3, min_count: int = 2, excluded: frozenset[str] = frozenset()) -> list[str]:
    table = entities.choose(COUNTS, top_k=top_k, min_count=min_count, excluded=excluded)
    assert table["rank"].to_pylist() == list(range(1, table.num_rows + 1))
    return [row["entity"] for row in table.to_pylist() if row["kept"]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> FileList:
        (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
        return FileList(path=str(tmp_path / "mine.txt"))

    return write


@pytest.fixture(scope="module")
def nlp() -> Language:
    return load_tagger()


# ---- frequency


def test_the_most_frequent_are_kept() -> None:
    table = FrequencyList().choose(COUNTS, top_k=3, min_count=2, excluded=frozenset())
    assert table["entity"].to_pylist() == ["cat", "ant", "dog", "cow", "bee"]
    assert table["count"].to_pylist() == [5, 3, 3, 2, 1]
    assert table["kept"].to_pylist() == [True, True, True, False, False]
    assert kept(FrequencyList(), top_k=9) == ["cat", "ant", "dog", "cow"]
    assert FrequencyList().choose({}, top_k=3, min_count=1, excluded=frozenset()).num_rows == 0


def test_excluded_names_make_room_for_the_next_ones() -> None:
    assert kept(FrequencyList(), excluded=frozenset({"cat", "dog"})) == ["ant", "cow"]
    assert kept(FrequencyList(), top_k=1, excluded=frozenset({"cat"})) == ["ant"]


# ---- paper


def test_the_papers_words_are_kept_however_rare() -> None:
    assert len(kept(PaperList(), top_k=1, min_count=1000)) == 73
    assert len(kept(PaperList(merge=False))) == 100
    assert "bee" not in kept(PaperList())
    assert "tv" not in kept(PaperList(), excluded=frozenset({"tv"}))
    assert not {"tv", "TV"} & set(kept(PaperList(merge=False), excluded=frozenset({"tv"})))


def test_only_the_script_goes_without_caption_rules() -> None:
    assert not PaperList().caption_rules
    assert PaperList(match="nouns").caption_rules
    assert FrequencyList().caption_rules


# ---- file


def test_a_list_of_ones_own(write: Write) -> None:
    entities = write("# pets\n\nDog, doggo, puppy\ncat\tkitty\t\nT-Shirt  # worn\n  wind  turbine, wind mill\r\n")
    assert entities.names() == {
        "dog": "dog",
        "doggo": "dog",
        "puppy": "dog",
        "cat": "cat",
        "kitty": "cat",
        "t shirt": "t-shirt",
        "wind turbine": "wind turbine",
        "wind mill": "wind turbine",
    }
    assert kept(entities, top_k=1, min_count=1000) == ["cat", "dog", "t-shirt", "wind turbine"]
    assert kept(entities, excluded=frozenset({"dog"})) == ["cat", "t-shirt", "wind turbine"]
    table = entities.choose(COUNTS, top_k=1, min_count=1, excluded=frozenset())
    assert {row["entity"]: row["count"] for row in table.to_pylist()} == COUNTS | {"t-shirt": 0, "wind turbine": 0}


@pytest.mark.parametrize(
    ("text", "caption", "entities"),
    [
        ("dog, doggo, puppy", "a doggo, two puppies and a cat", ["dog", "cat"]),
        ("man, woman", "a guy and a lady", ["man"]),  # what meant a synonym follows it
        ("couch", "a couch and a sofa", ["couch", "sofa"]),
        ("quokka\nflux capacitor", "a quokka with two flux capacitors", ["quokka", "flux capacitor"]),  # no name of the lexicon
        ("party\nphoto, picture", "a photo of a party", ["photo", "party"]),  # the stop list is overruled
        ("selfie-stick", "a selfie stick", ["selfie-stick"]),
        ("mobile phone", "a mobile phone and a telephone", ["mobile phone", "phone"]),
        ("dogs\nT-Shirts", "a dog and two dogs in a T-shirt", ["dogs", "t-shirts"]),  # a plural brings its singular
        ("wine glasses\naxolotls", "an axolotl in a wine glass", ["axolotls", "wine glasses"]),
        ("wine glasses", "two wine glasses and a glass", ["wine glasses", "glass"]),
        ("dogs\ndog, hound", "a dog, a hound and two dogs", ["dog", "dogs"]),  # unless the list has the singular
        ("pants", "a woman in pants", ["woman", "pants"]),
        ("Rubik's cube", "a Rubik's cube and a rubik’s cube", ["rubik's cube"]),  # possessives inside names
        ("lover’s knot, lovers' knot", "a lover's knot and two lovers' knots", ["lover’s knot"]),
    ],
)
def test_how_captions_are_read_for_it(write: Write, nlp: Language, text: str, caption: str, entities: list[str]) -> None:
    mine = write(text)
    lexicon = mine.lexicon(load_lexicon())
    assert mine.finder(nlp, lexicon)([caption]) == [entities]
    scan = mine.scanner(lexicon, nlp.tokenizer)
    possible = [name for form in scan([caption]).to_pylist()[0] for name in scan.means(form).possible]
    assert set(entities) <= set(possible)


@pytest.mark.parametrize("plural", ["glasses", "skis", "pants"])
def test_plurals_of_the_list_are_things_of_their_own(write: Write, nlp: Language, plural: str) -> None:
    mine = write(plural)
    assert mine.finder(nlp, mine.lexicon(load_lexicon()))([f"a woman with {plural}"]) == [["woman", plural]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no entity"),
        ("# only\n\n# comments\n", "names no entity"),
        ("dog\n,,\t,\n", "line 2: no name before the comma"),
        ("dog\n, puppy\n", "line 2: no name before the comma"),
        ("dog, puppy\ncat\nPuppy\n", "line 3: 'puppy' stands in line 1 too"),
        ("t-shirt\nshirt, T Shirt\n", "line 2: 't shirt' stands in line 1 too"),
        ("dog, dog\n", "line 1: 'dog' stands in line 1 too"),
    ],
)
def test_faults_name_file_and_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        write(text).names()
    assert str(caught.value).startswith("filter.vocabulary.path: ")
    assert "mine.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for path in (tmp_path / "missing.txt", tmp_path, tmp_path / "latin.txt"):
        with pytest.raises(InputError, match="cannot be read"):
            FileList(path=str(path)).lexicon(load_lexicon())


def test_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbfdog\r\ncat\r\n")
    assert list(FileList(path=str(tmp_path / "mine.txt")).names()) == ["dog", "cat"]


# ---- lexicon


def test_names_of_ones_own() -> None:
    base = Lexicon(names={"man": "man", "guy": "man", "photo": "", "sofa": "sofa", "couch": "sofa"})
    changed = base.with_names({"people": "people", "Man": "people", "couch": "couch", "photo": "photo"})
    assert changed.names == {
        "man": "people", "guy": "people", "people": "people", "photo": "photo", "sofa": "sofa", "couch": "couch"
    }  # fmt: skip
    assert base.names["guy"] == "man"
    assert spelling(" T-Shirt ") == "t shirt"
    assert spelling("Rubik’s Cube") == spelling("rubik's-cube") == "rubik 's cube"
    assert spelling("lovers' knot o'clock") == "lovers ' knot o'clock"
