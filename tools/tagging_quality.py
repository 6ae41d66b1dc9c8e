"""How well the tagger finds nouns, and the filter entities: against a treebank and against captions labelled by hand.

    python tools/tagging_quality.py [--treebank FOLDER] [--captions FILE [FILE ...]] [--tagger MODEL] [--half dev]

The labelled captions are `tests/data/labelled_captions.tsv`; what their labels mean is written at its head. Scores are of the
half that nothing was tuned on, with 95 % intervals (Wilson's; as if mentions were independent). With `--treebank`
(`*test.conllu` or `.conllu.gz` of a Universal Dependencies treebank) nouns are also scored on its test split. With `--captions`
(tables of links as `filter.source.path` takes them) two-tier matching is scored beside tagging everything: it learns from all
of their captions which words are nouns. Takes half a minute on one core.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc
from train_tagger import Sentence, as_caption, docs_of, find

from filtering.captions.corpus import FilterConfig
from filtering.captions.entities import EntityFinder
from filtering.captions.lexicon import load_lexicon
from filtering.captions.matching import Matcher, entity_counts, tally
from filtering.captions.reader import SourceConfig, read_links
from filtering.captions.surface_forms import Scanner
from filtering.captions.tagger import COMMON_NOUNS, NOUNS, load_tagger
from filtering.captions.text import for_tagging
from filtering.captions.vocabulary import FrequencyList, kept_entities

LABELS = Path(__file__).resolve().parents[1] / "tests" / "data" / "labelled_captions.tsv"
COMMON, PROPER, NOT_JUDGED = "n", "p", "?"
KINDS = {"common nouns": (COMMON_NOUNS, COMMON), "all nouns": (NOUNS, COMMON + PROPER)}
"""Name → the tagger's tags, and the marks of the labelled captions."""

TOP_K = 100


def interval(part: int, whole: int) -> str:
    """Wilson's 95 % interval of a share, in percent."""
    if not whole:
        return "-"
    share, z = part / whole, 1.96
    middle = (share + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z * (share * (1 - share) / whole + z * z / (4 * whole * whole)) ** 0.5 / (1 + z * z / whole)
    return f"{100 * (middle - half):.0f} to {100 * min(middle + half, 1):.0f} %"


@dataclass(frozen=True)
class Score:
    """How much of what was found is there, and how much of what is there was found."""

    right: int
    found: int
    there: int

    @property
    def precision(self) -> float:
        return self.right / self.found

    @property
    def recall(self) -> float:
        return self.right / self.there

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.found + self.there)

    def __str__(self) -> str:
        return (
            f"P {self.precision:.3f} ({interval(self.right, self.found)})  R {self.recall:.3f} "
            f"({interval(self.right, self.there)})  F1 {self.f1:.3f}"
        )


@dataclass(frozen=True)
class Labelled:
    """A caption, one mark per token, and its entities in order. `half`: "dev", or "test", which nothing was tuned on."""

    source: str
    half: str
    caption: str
    marks: str
    entities: tuple[str, ...]


def read_labels(path: Path = LABELS) -> list[Labelled]:
    """The labelled captions."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Labelled(*row[:4], tuple(filter(None, row[4].split(",")))) for row in rows]


def score(found: Iterable[Iterable[object]], there: Iterable[Iterable[object]]) -> Score:
    """Both sides as one collection per text; within a text each thing counts once."""
    pairs = [(set(one), set(other)) for one, other in zip(found, there, strict=True)]
    return Score(sum(len(a & b) for a, b in pairs), sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs))


def noun_score(nlp: Language, sentences: list[Sentence], tags: frozenset[str], *, from_text: bool = False) -> Score:
    """Nouns of a treebank, told by where they stand in the text; `from_text` lets spaCy's tokenizer split it."""
    truth = docs_of(nlp, sentences, tagged=True)
    read = nlp.pipe(doc.text for doc in truth) if from_text else nlp.pipe(docs_of(nlp, sentences, tagged=False))
    return score((_places(doc, tags) for doc in read), (_places(doc, tags) for doc in truth))


def _places(doc: Doc, tags: frozenset[str]) -> list[tuple[int, int]]:
    return [(token.idx, token.idx + len(token)) for token in doc if token.tag_ in tags]


def caption_noun_score(nlp: Language, labelled: Sequence[Labelled], tags: frozenset[str], marks: str) -> Score:
    """Nouns of the labelled captions. Tokens that are not judged count on neither side."""
    docs = nlp.pipe(for_tagging(row.caption)[0] for row in labelled)
    judged = [[(token, mark) for token, mark in zip(doc, row.marks, strict=True) if mark != NOT_JUDGED]
              for doc, row in zip(docs, labelled, strict=True)]  # fmt: skip
    return score(
        ([token.i for token, _ in row if token.tag_ in tags] for row in judged),
        ([token.i for token, mark in row if mark in marks] for row in judged),
    )


def entity_score(found: Sequence[Sequence[str]], labelled: Sequence[Labelled], kept: frozenset[str] | None = None) -> Score:
    """Entities of the labelled captions; with `kept` no others count, on either side."""
    return score(
        ([name for name in names if kept is None or name in kept] for names in found),
        ([name for name in row.entities if kept is None or name in kept] for row in labelled),
    )


class TwoTiers:
    """Two-tier matching that has learned from `captions`, the way the filter learns from a corpus that is tagged as a whole."""

    def __init__(self, find_all: EntityFinder, scan: Scanner, captions: Sequence[str]) -> None:
        self._find, self._scan = find_all, scan
        self._forms = tally(scan(captions), find_all(captions), scan.means)

    def names(self, top_k: int | None = None) -> frozenset[str]:
        """The `top_k` most frequent entities of the corpus, or all."""
        counts = entity_counts(self._forms)
        return kept_entities(FrequencyList().choose(counts, top_k=top_k or len(counts), min_count=1, excluded=frozenset()))

    def __call__(self, captions: Sequence[str], kept: frozenset[str]) -> list[list[str]]:
        """The kept entities per caption."""
        matcher = Matcher(self._find, self._scan, kept, self._forms, FilterConfig.confidence)
        return matcher.match(captions, self._scan(captions), [None] * len(captions))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--treebank", type=Path, help="folder with a treebank's test .conllu(.gz)")
    parser.add_argument(
        "--captions", nargs="+", default=[], help="tables of links whose captions two-tier matching learns from"
    )
    parser.add_argument("--tagger", default="", help="a spaCy model instead of the shipped one")
    parser.add_argument("--half", default="test", choices=["dev", "test"], help="of the labelled captions")
    args = parser.parse_args()
    nlp = load_tagger(args.tagger)
    if args.treebank:
        print_treebank(nlp, find(args.treebank, "test"))
    labelled = [row for row in read_labels() if row.half == args.half]
    print_captions(nlp, labelled)
    print_entities(nlp, labelled, [caption for path in args.captions for caption in captions_of(path)])


def captions_of(path: str) -> list[str]:
    """All captions of a table of links, cleaned, each once."""
    tables = [batch["caption"].to_pylist() for batch in read_links(SourceConfig(path=path))]
    return list(dict.fromkeys(caption for batch in tables for caption in batch if caption))


def print_treebank(nlp: Language, sentences: list[Sentence]) -> None:
    """Noun scores on a treebank as written, from raw text, and in the style of captions."""
    style = [as_caption(sentence) for sentence in sentences]
    for kind, (tags, _) in KINDS.items():
        print(f"treebank, {kind}, its tokens:           {noun_score(nlp, sentences, tags)}")
        print(f"treebank, {kind}, raw text:             {noun_score(nlp, sentences, tags, from_text=True)}")
        print(f"treebank, {kind}, lower case, no stop:  {noun_score(nlp, style, tags)}")
        print(f"treebank, {kind}, same from raw text:   {noun_score(nlp, style, tags, from_text=True)}")


def by_source(labelled: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """The labelled captions by source, and all."""
    sources = sorted({row.source for row in labelled})
    return {source: [row for row in labelled if row.source == source] for source in sources} | {"all": list(labelled)}


def print_captions(nlp: Language, labelled: Sequence[Labelled]) -> None:
    """Noun scores on the labelled captions."""
    for source, rows in by_source(labelled).items():
        for kind, (tags, marks) in KINDS.items():
            print(f"{source} captions, {kind}:  {caption_noun_score(nlp, rows, tags, marks)}")


def print_entities(nlp: Language, labelled: Sequence[Labelled], corpus: Sequence[str]) -> None:
    """Entity scores on the labelled captions: everything tagged, and in two tiers where there is a corpus to learn from."""
    lexicon = load_lexicon()
    find_all = EntityFinder(nlp, lexicon)
    tiers = TwoTiers(find_all, Scanner(lexicon, nlp.tokenizer), corpus) if corpus else None
    for source, rows in by_source(labelled).items():
        captions = [row.caption for row in rows]
        full = find_all(captions)
        print(f"{source} captions, entities, everything tagged:  {entity_score(full, rows)}")
        for label, kept in {"all that occur": tiers.names(), f"top {TOP_K}": tiers.names(TOP_K)}.items() if tiers else ():
            print(f"{source} captions, entities, {label}, everything tagged:  {entity_score(full, rows, kept)}")
            print(
                f"{source} captions, entities, {label}, two tiers:          {entity_score(tiers(captions, kept), rows, kept)}"
            )


if __name__ == "__main__":
    main()
