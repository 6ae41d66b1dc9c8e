"""What OVSegmentor's exact word matching misses and takes in: its 100 words, read step by step more as a person would.

    python benchmarks/paper_semantics.py CAPTIONS [--examples 2]

CAPTIONS is anything that the filter reads. Every step keeps the changes of those before it. Prints the rows that each step
keeps, and how many it gains and loses against the one before, with examples drawn by their keys.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import spacy
from nltk.tokenize import NLTKWordTokenizer
from spacy.language import Language
from spacy.tokens import Doc

from filtering.captions.entities import EntityFinder, NounLemmas
from filtering.captions.lexicon import Lexicon, load_lexicon, paper_names, spelling
from filtering.captions.reader import SourceConfig, read_links
from filtering.captions.tagger import load_tagger
from filtering.captions.vocabulary import PaperList

Read = Callable[[Sequence[str]], list[list[str]]]
"""Captions → for each the paper's words or entities that it mentions, in order."""

PAPER = PaperList(match="nouns")
TOKENS = NLTKWordTokenizer().tokenize
PLURAL_NOUN = "NNS"


@Language.component("everything_is_a_noun")
def everything_is_a_noun(doc: Doc) -> Doc:
    """Tags every word as a plural noun, which is read as a singular where it is none."""
    for token in doc:
        token.tag_ = PLURAL_NOUN
    return doc


def by_words(tokens_of: Callable[[str], Iterable[str]], readings_of: Callable[[str], Iterable[str]]) -> Read:
    """Takes the tokens of which a reading is one of the words."""
    words = paper_names()

    def read(captions: Sequence[str]) -> list[list[str]]:
        found = (
            [reading for token in tokens_of(text) for reading in readings_of(token) if reading in words] for text in captions
        )
        return [list(dict.fromkeys(some)) for some in found]

    return read


def among_the_papers(find: EntityFinder) -> Read:
    """Of what a finder finds, the paper's entities."""
    names = frozenset(PAPER.names().values())
    return lambda captions: [[name for name in found if name in names] for found in find(captions)]


def without_stop(caption: str) -> list[str]:
    """nltk's tokens without the full stops that it leaves at words inside a caption."""
    return [token.rstrip(".") for token in TOKENS(caption)]


def parted(caption: str) -> list[str]:
    """... and what hyphens, slashes and apostrophes join as words of their own, beside the whole."""
    tokens = without_stop(caption)
    signs = str.maketrans("-/_'’", "     ")
    return [part for token in tokens for part in (token, *(token.translate(signs).split() if not token.isalpha() else ()))]


def steps() -> dict[str, Read]:
    """The readings by name, in order."""
    words, lemmas = paper_names(), NounLemmas()
    lowered = {word.lower(): word for word in reversed(words)}  # "tv" before "TV"
    forms = {form: word for word in words for form in lemmas(word.lower())} | lowered  # "ski" too

    def any_case(token: str) -> list[str]:
        return [lowered.get(token.lower(), "")]

    def any_number(token: str) -> list[str]:
        return [forms[form] for form in (token.lower(), *lemmas(token.lower())) if form in forms][:1]

    def merged(token: str) -> list[str]:
        return [words[word] for word in any_number(token)]

    synonyms = PAPER.lexicon(load_lexicon())
    spelt = {*map(spelling, words), *forms}
    compounds = Lexicon(names={text: name for text, name in synonyms.names.items() if " " in text or text in spelt})
    every_word = spacy.blank("en")
    every_word.add_pipe("everything_is_a_noun")
    return {
        "the script": by_words(TOKENS, lambda token: [token]),
        "+ full stops inside the caption": by_words(without_stop, lambda token: [token]),
        "+ any case": by_words(without_stop, any_case),
        "+ singular and plural": by_words(without_stop, any_number),
        "+ possessives and hyphens": by_words(parted, any_number),
        "+ merges": by_words(parted, merged),
        "+ compounds of the lexicon": among_the_papers(EntityFinder(every_word, compounds)),
        "+ synonyms of the lexicon": among_the_papers(EntityFinder(every_word, synonyms)),
        "+ nouns alone": among_the_papers(EntityFinder(load_tagger(), synonyms)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions")
    parser.add_argument("--examples", type=int, default=2)
    args = parser.parse_args()
    links = pa.concat_tables(read_links(SourceConfig(path=args.captions))).sort_by("key")
    captions = links["caption"].to_pylist()
    print(f"{len(captions):,} captions\n{'reading':34} {'kept':>7} {'gained':>7} {'lost':>7} {'other words':>11}")
    before: list[list[str]] | None = None
    for name, read in steps().items():
        found = read(captions)
        before = found if before is None else before
        pairs = list(zip(captions, before, found, strict=True))
        gained = [(caption, now) for caption, was, now in pairs if now and not was]
        lost = [(caption, was) for caption, was, now in pairs if was and not now]
        changed = sum(bool(was and now) and was != now for _, was, now in pairs)
        print(f"{name:34} {sum(map(bool, found)):7,} {len(gained):7,} {len(lost):7,} {changed:11,}")
        for sign, rows in (("+", gained), ("-", lost)):
            for caption, names in rows[: args.examples]:
                print(f"    {sign} {caption[:110]}  [{', '.join(names)}]")
        before = found


if __name__ == "__main__":
    main()
