"""Build `owseg/evaluation/synonyms.txt`: further names of the classes of the benchmarks and of the miniature world.

    python tools/build_synonyms.py [--out owseg/evaluation/synonyms.txt]

They come from the curation's lexicon. A class has the names that its hand-kept part takes for the same entity ("couch" is a
sofa), and the other lemmas of the class's WordNet synset. Which of a word's senses comes first is not in timm's list, so what
could be another thing is left out: a class that leads several synsets ("cabinet") has no lemmas of any, unless SENSES says
which is meant, and a lemma that stands in another synset as well ("machine", of car) is no synonym. A word that CLIP's
tokenizer cuts in more than two pieces is too rare to be of use ("charabanc"). "wall-brick" is read as "brick wall",
"sky-other" and "door-stuff" as their first word.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from build_lexicon import read, section_of, usable

from filtering.captions.leakage import leaked
from filtering.captions.lexicon import FOLDER, NOT_AN_ENTITY, Lexicon, load_lexicon, spelling
from miniature.benchmarks import CLASSES
from owseg.evaluation.datasets import BENCHMARKS
from owseg.text import CLIP_VOCABULARY, clip_tokenizer

SENSES = {"fence": 3327234, "floor": 3365592, "mouse": 3793489, "tie": 3815615}
"""The synsets of classes whose words lead several: the barrier, the lower surface of a room, the computer's, the necktie."""
REFUSED: dict[str, tuple[str, ...]] = {
    "baseball bat": ("lumber",),
    "bus": ("jitney", "passenger vehicle"),
    "chandelier": ("pendant", "pendent"),
    "computer": ("computing device", "computing machine", "data processor", "information processing system"),
    "curtain": ("pall",),
    "cushion": ("shock", "shock absorber"),
    "dog": ("canis familiaris",),
    "donut": ("sinker",),
    "furniture-other": ("article of furniture", "piece of furniture"),
    "hair drier": ("hand blower",),
    "hot dog": ("red hot",),
    "motorbike": ("minibike",),
    "napkin": ("nappy",),
    "person": ("actor", "actress", "celebrity", "politician", "somebody"),
    "plant": ("industrial plant",),
    "plant-other": ("industrial plant",),
    "poster": ("post horse", "post-horse"),
    "television receiver": ("boob tube", "goggle box", "idiot box"),
    "tent": ("collapsible shelter",),
    "toilet": ("lav",),
    "tv": ("boob tube", "goggle box", "idiot box"),
    "wall-panel": ("panel wall",),
    "window-blind": ("blind window",),
}
"""What reading the list by eye took out: other senses, kinds of a class, and readings that are no names."""
HEADER = """\
# Further names of classes of the benchmarks and the miniature world, by tools/build_synonyms.py of the curation's lexicon.
"""
OTHER = ("other", "stuff")
"""What COCO-Stuff writes behind a class that stands for the rest of its kinds, or for what is no thing."""


class Synsets:
    """WordNet's synsets of visible things: their lemmas, and where each lemma stands."""

    def __init__(self, info: Path) -> None:
        self.lemmas = {
            synset: [lemma.lower() for lemma in text.split(", ") if usable(lemma)]
            for synset, text in read(info, "lemma")
            if section_of(synset)
        }
        self.count = Counter(lemma for lemmas in self.lemmas.values() for lemma in set(lemmas))
        self.led: dict[str, list[int]] = {}
        for synset, lemmas in self.lemmas.items():
            for lemma in lemmas[:1]:
                self.led.setdefault(lemma, []).append(synset)

    def of(self, names: Iterable[str]) -> list[str]:
        """The unambiguous lemmas of the one synset that is meant by `names`."""
        for name in names:
            led = self.led.get(name, [])
            if not led and self.count[name] == 1:
                led = [synset for synset, lemmas in self.lemmas.items() if name in lemmas]
            synset = SENSES.get(name) or (led[0] if len(led) == 1 else None)
            if synset:
                return [lemma for lemma in self.lemmas[synset] if self.count[lemma] == 1 or lemma == name]
        return []


def same_entity(lexicon: Lexicon) -> dict[str, list[str]]:
    """Entity → the names that `extra.tsv` gives it; kinds of it ("police car") are left out."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / "extra.tsv").read_text(encoding="utf-8").splitlines():
        name, _, canonical = line.partition("\t")
        entity = lexicon.names.get(spelling(canonical))
        if entity and not name.endswith(f" {canonical}"):
            found.setdefault(entity, [entity] if canonical != entity else []).append(name)
    return found


def reading_of(name: str) -> str:
    """How a class's name reads as plain words."""
    thing, _, kind = name.strip().partition("-")
    return thing if not kind or kind in OTHER else f"{kind} {thing}"


def synonyms_of(
    name: str, lexicon: Lexicon, extras: dict[str, list[str]], synsets: Synsets, known: Callable[[str], bool]
) -> Iterator[str]:
    """Further names of a class, the surest first."""
    reading = reading_of(name)
    refused = {name.strip(), *REFUSED.get(name, ())}
    entity = leaked({"": [[reading]]}, lexicon)[""].get(reading, "")
    if reading.endswith(f" {entity}"):
        entity = ""  # a coffee table counts as a table in captions, but not every table is one
    candidates = [reading, entity, *extras.get(entity, []), *synsets.of([spelling(reading), entity])]
    for candidate in dict.fromkeys(candidates):
        spelt = spelling(candidate)
        visible = lexicon.names.get(spelt, spelt) != NOT_AN_ENTITY
        if candidate and candidate not in refused and visible and known(candidate):
            yield candidate


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "owseg" / "evaluation" / "synonyms.txt")
    args = parser.parse_args()
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        raise SystemExit("timm is not installed: pip install timm")
    synsets = Synsets(Path(timm.origin).parent / "data" / "_info")
    lexicon = load_lexicon()
    tokenizer = clip_tokenizer(CLIP_VOCABULARY, 77)

    def known(name: str) -> bool:
        return all(len(tokenizer.encode(word)) <= 2 for word in name.replace("-", " ").split())

    extras = same_entity(lexicon)
    lists = [*(benchmark.names[benchmark.background :] for benchmark in BENCHMARKS.values()), *CLASSES.values()]
    lines = []
    for name in dict.fromkeys(name for names in lists for name in names if name != "background"):
        if found := list(synonyms_of(name, lexicon, extras, synsets, known)):
            lines.append(f"{name}: {', '.join(found)}\n")
    args.out.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{args.out}: {len(lines)} classes have further names")


if __name__ == "__main__":
    main()
