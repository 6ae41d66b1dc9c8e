"""The ways to choose which entities are kept. `ListConfig` is the registry; each says how captions are read for it, too."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from spacy.language import Language
from spacy.tokenizer import Tokenizer

from filtering import InputError
from filtering.captions.entities import EntityFinder, NounLemmas
from filtering.captions.lexicon import Lexicon, paper_names, spelling
from filtering.captions.surface_forms import CaptionScanner, Meaning, Scanner
from filtering.schema import ENTITIES

Finder = Callable[[Iterable[str]], list[list[str]]]
"""For every caption its entities, each once, in order of first mention."""


class _NounList:
    """A list whose entities are the nouns that the tagger tells."""

    @property
    def caption_rules(self) -> bool:
        """Whether captions are cleaned, and the caption rules asked, before this list."""
        return True

    def lexicon(self, base: Lexicon) -> Lexicon:
        """`base` with the list's own names."""
        return base

    def scanner(self, lexicon: Lexicon, tokenizer: Tokenizer) -> CaptionScanner:
        """Tells what captions may mention."""
        return Scanner(lexicon, tokenizer)

    def finder(self, nlp: Language, lexicon: Lexicon) -> Finder:
        """Tells what captions mention."""
        return EntityFinder(nlp, lexicon)


@dataclass(frozen=True, kw_only=True)
class FrequencyList(_NounList):
    """The visual nouns that most captions mention."""

    name: Literal["frequency"] = "frequency"
    """Keeps the `top_k` entities that most captions mention."""

    def choose(self, counts: Mapping[str, int], *, top_k: int, min_count: int, excluded: frozenset[str]) -> pa.Table:
        """All entities (schema `ENTITIES`), `kept` for the `top_k` most frequent not `excluded` with `min_count` captions."""
        frequent = [name for name in _ranked(counts) if counts[name] >= min_count and name not in excluded]
        return _table(counts, frozenset(frequent[:top_k]))


@dataclass(frozen=True, kw_only=True)
class PaperList(_NounList):
    """OVSegmentor's 100 words, from which CC4M was made (arXiv 2301.09121 and its released script)."""

    name: Literal["paper"] = "paper"
    """Keeps OVSegmentor's 100 words, however rare they are."""
    merge: bool = True
    """Whether synonyms are one entity: the paper's 73 names, with man, child and bride all people; false leaves the 100."""
    match: Literal["script", "nouns"] = "script"
    """"script": rows and words exactly as the released script has them, no caption rules; "nouns": as for other lists."""

    @property
    def caption_rules(self) -> bool:
        """Whether captions are cleaned, and the caption rules asked, before this list: the script does neither."""
        return self.match == "nouns"

    def names(self) -> dict[str, str]:
        """The words → the names that they get."""
        return {word: name if self.merge else word for word, name in paper_names().items()}

    def lexicon(self, base: Lexicon) -> Lexicon:
        """`base` with the paper's words under their names, and with them whatever `base` takes for the same thing."""
        lemmas = NounLemmas()
        own: dict[str, str] = {}
        for word, name in self.names().items():
            own.setdefault(spelling(word), name)  # "tv" is also what TV means
        for written, name in tuple(own.items()):
            for meaning in filter(None, map(base.names.get, (written, *lemmas(written)))):
                own.setdefault(spelling(meaning), name)  # "people" brings person along, "skis" ski
        return base.with_names(own)

    def scanner(self, lexicon: Lexicon, tokenizer: Tokenizer) -> CaptionScanner:
        """Tells what captions may mention."""
        return ScriptScanner(self.names()) if self.match == "script" else super().scanner(lexicon, tokenizer)

    def finder(self, nlp: Language, lexicon: Lexicon) -> Finder:
        """Tells what captions mention."""
        return ScriptScanner(self.names()).find if self.match == "script" else super().finder(nlp, lexicon)

    def choose(self, counts: Mapping[str, int], *, top_k: int, min_count: int, excluded: frozenset[str]) -> pa.Table:
        """All entities (schema `ENTITIES`), `kept` for the paper's that are not `excluded`."""
        return _table(counts, _without(self.names().values(), excluded))


@dataclass(frozen=True, kw_only=True)
class FileList(_NounList):
    """A list of your own, with synonyms."""

    name: Literal["file"] = "file"
    """Keeps the entities of a file, however rare they are."""
    path: str
    """Text file with an entity a line: its name, then its synonyms, commas or tabs between; # opens a comment."""

    def names(self) -> dict[str, str]:
        """Every name and synonym, as the lexicon spells it → the entity's name. InputError names the line that is wrong."""
        file = Path(self.path).expanduser()
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(
                f"filter.vocabulary.path: {self.path}: cannot be read ({error}); give a text file in UTF-8"
            ) from None
        found: dict[str, str] = {}
        place: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            entity, *synonyms = (" ".join(name.lower().split()) for name in re.split(r"[,\t]", text))
            if not spelling(entity):
                raise InputError(
                    f"filter.vocabulary.path: {self.path}, line {number}: no name before the comma; write one, or drop the line"
                )
            for name in filter(spelling, (entity, *synonyms)):
                first = place.setdefault(spelling(name), number)
                if spelling(name) in found:
                    raise InputError(
                        f"filter.vocabulary.path: {self.path}, line {number}: {name!r} stands in line {first} too; keep one"
                    )
                found[spelling(name)] = entity
        if not found:
            raise InputError(f"filter.vocabulary.path: {self.path}: names no entity; write one a line")
        return found

    def lexicon(self, base: Lexicon) -> Lexicon:
        """`base` with the list's names, which overrule it and its stop list."""
        own = self.names()
        return base.with_names(_singulars(own, base) | own)

    def choose(self, counts: Mapping[str, int], *, top_k: int, min_count: int, excluded: frozenset[str]) -> pa.Table:
        """All entities (schema `ENTITIES`), `kept` for the list's that are not `excluded`."""
        return _table(counts, _without(self.names().values(), excluded))


ListConfig = FrequencyList | PaperList | FileList


def _singulars(own: Mapping[str, str], base: Lexicon) -> dict[str, str]:
    """The singulars of names that are plurals, save of those that `base` knows as things of their own ("pants")."""
    lemmas = NounLemmas()
    found: dict[str, str] = {}
    for written, name in own.items():
        *opening, last = written.split()
        singulars = [" ".join([*opening, lemma]) for lemma in lemmas(last) if lemma != last]
        known = [singular for singular in singulars if singular in base.names]
        for singular in (known or singulars)[:1]:
            if written not in base.names or base.names[written] == base.names.get(singular):
                found.setdefault(singular, name)
    return found


def kept_entities(entities: pa.Table) -> frozenset[str]:
    """The kept names of a table that `choose` made (schema `ENTITIES`)."""
    return frozenset(entities.filter(entities["kept"])["entity"].to_pylist())


def _ranked(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _without(names: Iterable[str], excluded: Iterable[str]) -> frozenset[str]:
    barred = frozenset(map(spelling, excluded))  # "tv" bars "TV"
    return frozenset(name for name in names if spelling(name) not in barred)


def _table(counts: Mapping[str, int], kept: frozenset[str]) -> pa.Table:
    """Entities by falling count (ties by name), with those of `kept` that no caption mentions."""
    counts = dict.fromkeys(kept, 0) | dict(counts)
    rows: list[dict[str, Any]] = [
        {"entity": name, "count": counts[name], "rank": rank, "kept": name in kept}
        for rank, name in enumerate(_ranked(counts), start=1)
    ]
    return pa.Table.from_pylist(rows, schema=ENTITIES)


# ---- OVSegmentor's script


class ScriptScanner:
    """Reads captions as OVSegmentor's released script does: nltk's tokens that are, letter by letter, one of its words.

    The script has nltk part captions into sentences first. Its model for that is data of its own, so captions are one sentence
    here; a word before a full stop counts at the end of the caption only ("a dog. a cat." mentions no dog).
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names`: the words → what they are called."""
        from nltk.tokenize import NLTKWordTokenizer  # takes a second and 190 MB that other lists do not need

        self._tokens = NLTKWordTokenizer().tokenize
        self._words = frozenset(names)
        self._meanings = {word: Meaning(name, frozenset({name}), certain=True) for word, name in names.items()}

    def __call__(self, captions: Iterable[str]) -> pa.ListArray:
        """For every caption the words that it holds, in order."""
        return pa.array(map(self.words, captions), pa.list_(pa.string()))

    def means(self, form: str) -> Meaning:
        """What a word stands for: the entity, whatever a tagger says."""
        return self._meanings[form]

    def find(self, captions: Iterable[str]) -> list[list[str]]:
        """For every caption its entities, each once, in order of first mention."""
        return [list(dict.fromkeys(self._meanings[word].name for word in self.words(caption))) for caption in captions]

    def words(self, caption: str) -> list[str]:
        """The tokens of a caption that are words of the list. The tokenizer is asked only where it can matter.

        It only adds spaces and rewrites quotes, and it parts a run of letters only before "n't" and inside words like "cannot"
        that hold none of the list. So without "n't" a token that is a word stands where a run of letters is one (the second of
        "T-shirt"), and a word between spaces is a token, also before ", " or the caption's last full stop.
        """
        if "n't" not in caption and "N'T" not in caption:
            runs = [run for run in _RUNS(caption) if run in self._words]
            if not runs:
                return []
            plain = caption.removesuffix(".").replace(", ", " ").split()
            if runs == [word for word in plain if word in self._words]:
                return runs
        return [token for token in self._tokens(caption) if token in self._words]


_RUNS = re.compile(r"\w+").findall
