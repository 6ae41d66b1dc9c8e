"""The paper's list keeps exactly the rows that OVSegmentor's released script keeps."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nltk
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spacy.language import Language

from filtering.captions.corpus import FilterConfig, build_corpus
from filtering.captions.lexicon import load_lexicon, paper_names
from filtering.captions.reader import SourceConfig
from filtering.captions.surface_forms import Scanner
from filtering.captions.tagger import load_tagger
from filtering.captions.vocabulary import PaperList, ScriptScanner
from helpers.paths import CAPTIONS, SHARED, needs

BY_HAND = [
    # whole words as they are spelt
    ("a dog on a sofa", ["dog", "sofa"]),
    ("Dog and DOG and dogs", []),
    ("two men, women and children", ["men", "women", "children"]),
    ("a TV, a tv and a Tv", ["TV", "tv"]),
    ("a T-shirt, a t-shirt and a shirt", ["T-shirt", "shirt"]),
    ("a hotdog, a dog-house and a dog_house", []),
    ("a hot dog", ["dog"]),
    # punctuation
    ("a dog", ["dog"]),
    ("a dog.", ["dog"]),
    ("a dog. a cat.", ["cat"]),
    ("a dog, a cat; a cow: a bird", ["dog", "cat", "cow", "bird"]),
    ("dog,cat and horse:cow", ["dog", "cat", "horse", "cow"]),
    ("the dog's bowl, the dogs' kite", ["dog", "bowl", "kite"]),
    ('a "dog" and a (cat) [cow] {bird} <horse>', ["dog", "cat", "cow", "bird", "horse"]),
    ("“dog” ‘cat’ «cow»", ["dog", "cat", "cow"]),
    ("#dog @cat $cow dog&cat dog/cat", ["dog", "cat", "cow", "dog", "cat"]),
    ("dog--cat dog—cat dog…", ["dog", "cat", "dog", "cat"]),
    ("dog? cat! cow*", ["dog", "cat", "cow"]),
    ("dog.. cat ...", ["dog", "cat"]),
    ("a dogn't, a hotdogn't and a 'dog", ["dog", "dog"]),
    ("I cannot see a book, gonna book", ["book", "book"]),
    # names of CC12M, other scripts, nothing
    ("<PERSON> and a prince", ["prince"]),
    ("dogé bücher 狗dog", []),
    ("dog\u00a0cat", ["dog", "cat"]),
    ("", []),
]


@pytest.fixture(scope="module")
def nlp() -> Language:
    return load_tagger()


def script(table: pa.Table, words: Sequence[str]) -> pa.Table:
    """OVSegmentor's filter: call the columns of a table image_id and caption, keep rows with a token that is in the list.

    Written from its description. It asks nltk for words, which parts the caption into sentences first; as the model for that
    cannot be had everywhere, the caption is one sentence here (`preserve_line`).
    """
    kept = []
    for row in table.rename_columns(["image_id", "caption"]).to_pylist():
        tokens = nltk.word_tokenize(row["caption"], preserve_line=True)
        matched = {token for token in tokens if token in words}
        if matched:
            kept.append({**row, "entity": ",".join(matched)})
    return pa.Table.from_pylist(kept)


Rows = dict[str, set[str]]
"""The words of every kept row, by its URL."""


def both(tmp_path: Path, captions: Sequence[str]) -> tuple[Rows, Rows]:
    """What the script keeps of `captions`, and what their corpus keeps."""
    urls = [f"https://images.example/{row}.jpg" for row in range(len(captions))]
    table = pa.table({"url": urls, "caption": captions})
    by_script = {row["image_id"]: set(row["entity"].split(",")) for row in script(table, [*paper_names()]).to_pylist()}

    pq.write_table(table, tmp_path / "captions.parquet")
    source = SourceConfig(path=str(tmp_path / "captions.parquet"))
    config = FilterConfig(source=source, vocabulary=PaperList(merge=False), shards=2, tagged_sample=1000)
    summary = build_corpus(config, tmp_path / "corpus")
    kept = pq.read_table(tmp_path / "corpus" / "kept").to_pylist()
    assert summary["links"] == len(captions)
    assert summary["kept"] == len(kept)
    counts = {row["entity"]: row["count"] for row in pq.read_table(tmp_path / "corpus" / "entities.parquet").to_pylist()}
    assert Counter(name for row in kept for name in row["entities"]) == Counter(counts)  # exact, though 1,000 rows are sampled
    return by_script, {row["url"]: set(row["entities"]) for row in kept}


def test_by_hand() -> None:
    scan = ScriptScanner(PaperList(merge=False).names())
    captions = [caption for caption, _ in BY_HAND]
    assert list(map(scan.words, captions)) == [words for _, words in BY_HAND]
    assert scan(captions).to_pylist() == [words for _, words in BY_HAND]
    assert scan.find(["a dog, a cat and a dog"]) == [["dog", "cat"]]


def test_corpus_of_captions_by_hand(tmp_path: Path) -> None:
    by_script, kept = both(tmp_path, [caption for caption, _ in BY_HAND])
    assert kept == by_script
    assert len(kept) == sum(bool(words) for _, words in BY_HAND)


@needs(CAPTIONS)
@pytest.mark.parametrize(("name", "rows"), [("cc3m_validation", 4729), ("web_alt_text_10k", 623)])
def test_corpus_of_real_captions(tmp_path: Path, name: str, rows: int) -> None:
    """The same rows with the same words: also "cat&eacute;gorie", where the script takes "&" for the end of a word."""
    captions = real_captions(name)
    by_script, kept = both(tmp_path, captions)
    assert len(by_script) == rows
    assert kept == by_script


def test_any_text_is_read_as_nltk_reads_it() -> None:
    scan = ScriptScanner(PaperList(merge=False).names())
    rng = random.Random(0)
    hard = (
        "dogs Dog hotdog cannot gonna gotta wanna lemme gimme d'ye more'n 'tis 'twas n't N'T 's 'S 'll 're T- -shirt t é 1 狗 ٣"
    )
    signs = "\u00a0\u2009\u3000\x1c\x85\u200b.,;:!?'\"`“”‘’«»()[]{}<>@#$%&*-_/|\\–—…"
    pieces = [*paper_names(), *hard.split(), *signs, *[" "] * 8, ", ", ". ", "''", "``", "--", ".."]
    for _ in range(6_000):
        caption = "".join(rng.choices(pieces, k=rng.randint(1, 8)))
        tokens = nltk.word_tokenize(caption, preserve_line=True)
        assert scan.words(caption) == [token for token in tokens if token in paper_names()], caption


def test_words_and_merges() -> None:
    names = paper_names()
    assert len(names) == 100
    assert len(set(names.values())) == 73
    assert [word for word, name in names.items() if name == "people"][:4] == ["people", "man", "men", "woman"]
    assert all(names[name] == name for name in names.values())
    if SHARED.is_dir():
        published = json.loads((SHARED / "data" / "entities" / "paper_entities.json").read_text())
        merges = published["syn_dict"]
        assert list(names.items()) == [(word, merges.get(word, word)) for word in published["TOP_CLASSES_1"]]
        assert list(dict.fromkeys(names.values())) == published["TOP_UNIQUE_CLASSES"]
        assert merges.keys() - names.keys() == {"T-Shirt"}


def test_merged_names_are_those_of_the_words() -> None:
    scan = ScriptScanner(PaperList().names())
    assert scan.find(["a bride and a groom on a couch by the hotel", "a TV"]) == [["people", "sofa", "house"], ["tv"]]
    assert scan(["a couch"]).to_pylist() == [["couch"]]
    assert scan.means("couch").name == "sofa"
    assert scan.means("couch").certain


@pytest.mark.parametrize(
    ("caption", "entities"),
    [
        ("Two Dogs And A Couple", ["dog", "people"]),
        ("persons and an actor with a t-shirt", ["people", "shirt"]),
        ("two princesses beside a sports car", ["people", "car"]),
        ("skis, a ski and airplanes", ["skis", "aeroplane"]),
        ("a hot dog on the desk", ["hot dog", "table"]),
        ("she will book a flight", []),
    ],
)
def test_nouns_of_the_papers_words(nlp: Language, caption: str, entities: list[str]) -> None:
    paper = PaperList(match="nouns")
    lexicon = paper.lexicon(load_lexicon())
    assert isinstance(paper.scanner(lexicon, nlp.tokenizer), Scanner)
    assert paper.finder(nlp, lexicon)([caption]) == [entities]


def test_names_of_nouns_that_are_not_merged(nlp: Language) -> None:
    paper = PaperList(match="nouns", merge=False)
    find = paper.finder(nlp, paper.lexicon(load_lexicon()))
    assert find(["a kid on a motorbike beside a TV and a child"]) == [["kid", "motorbike", "tv", "child"]]


def real_captions(name: str) -> list[str]:
    """The captions of a real file, as they stand."""
    path = CAPTIONS / name
    if name == "web_alt_text_10k":
        return [text or "" for text in pq.read_table(path.with_suffix(".parquet"))["TEXT"].to_pylist()]
    lines = path.with_suffix(".tsv").read_text(encoding="utf-8").split("\n")
    return [line.partition("\t")[0] for line in lines if line]
