"""Build `filtering/captions/lexicon/imagenet21k.tsv`, names of visible things, from the ImageNet-21k synsets that timm ships.

    python tools/build_lexicon.py [--out filtering/captions/lexicon/imagenet21k.tsv]

A line is a name in lower case; a compound whose definition says that it is a kind of its last word ("coffee table: low table
where ...") has that word in a second column, so that a caption's coffee table counts as a table, while the teddy bear of
`extra.txt` and the hot dog stay what they are. Of WordNet's sections only those of visible things are taken (no sports,
colours, shapes, people by name). Spellings of one thing share a name: plural and singular ("pliers" and "plier"), and what
one synset writes in two ways ("lens, lense"). What is missing, or misleads, is corrected by hand in the files beside the
output; `tools/build_wordnet_names.py` adds what ImageNet-21k leaves out of WordNet.
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

from filtering.captions.entities import NounLemmas
from filtering.captions.lexicon import FOLDER, spelling

SECTIONS = {
    "animal": (1310000, 2670000),
    "artifact": (2670000, 4625000),
    "body": (5210000, 5610000),
    "food": (7550000, 7940000),
    "group": (7940000, 8480000),
    "location": (8480000, 9186000),
    "object": (9186000, 9480000),
    "person": (9600000, 10810000),
    "plant": (11530000, 13170000),
    "substance": (14580000, 15100000),
}
"""Offsets of WordNet 3.0's noun sections (its lexicographer files): a synset's number tells its section."""


def read(info: Path, kind: str) -> Iterator[tuple[int, str]]:
    """(synset number, text) of timm's `imagenet_synset_to_<kind>.txt`."""
    for line in (info / f"imagenet_synset_to_{kind}.txt").read_text(encoding="utf-8").splitlines():
        synset, text = line.split("\t", 1)
        yield int(synset.removeprefix("n")), text


def section_of(synset: int) -> str | None:
    """The WordNet section that holds the synset, None if it is not one of visible things."""
    return next((name for name, (low, high) in SECTIONS.items() if low <= synset < high), None)


def usable(lemma: str) -> bool:
    """Whether a lemma has the form of a name that captions use: letters, a hyphen or apostrophe, at most three words.

    "in-basket" would be read where a puppy sleeps in a basket.
    """
    return not re.match(r"(at|in|on)-", lemma) and bool(
        re.fullmatch(r"[A-Za-z](['-]?[A-Za-z])+( [A-Za-z](['-]?[A-Za-z])+){0,2}", lemma)
    )


def head_of(lemma: str, definition: str) -> str | None:
    """The last word of a compound if its definition uses it, or if it merely has a plain adjective before it."""
    *modifiers, head = re.split(r"[ -]", lemma.lower())
    used = re.search(rf"\b{re.escape(head)}(s|es)?\b", definition.lower())
    return head if (used and modifiers) or (modifiers and PLAIN.issuperset(modifiers)) else None


PLAIN = frozenset(
    {"big", "black", "blue", "brown", "gray", "green", "grey", "high", "large", "little", "long", "new", "old", "pink"}
    | {"purple", "red", "short", "small", "tall", "white", "yellow", "young"}
)
"""What a caption says of a thing without making it another: its black cat is a cat, though WordNet lists a sort of panther."""


def build(info: Path) -> dict[str, str]:
    """Name in lower case → canonical name: the name itself, the head of a transparent compound, another spelling or number."""
    definitions = dict(read(info, "definition"))
    synsets = {synset: text.split(", ") for synset, text in read(info, "lemma") if section_of(synset)}
    lemmas = [(lemma, synset) for synset, among in synsets.items() for lemma in among if usable(lemma)]
    common = {lemma for lemma, _ in lemmas if lemma.islower()}
    names, heads = {}, {}
    for lemma, synset in lemmas:
        if lemma in common or lemma.split()[-1] in common:  # "Siamese cat", but no people by name and no Latin species
            names[lemma.lower()] = lemma.lower()
            if head := head_of(lemma, definitions[synset]):
                heads[lemma.lower()] = head
    names |= {name: head for name, head in heads.items() if head in names}
    same = one_spelling({*names, *by_hand()}, synsets.values())
    return names | {name: names.get(one, one) for name, one in same.items() if name in names}


def by_hand() -> set[str]:
    """The names of `extra.tsv`."""
    lines = (FOLDER / "extra.tsv").read_text(encoding="utf-8").splitlines()
    return {line.partition("\t")[0] for line in lines if line and not line.startswith("#")}


def one_spelling(names: Iterable[str], synsets: Iterable[Sequence[str]]) -> dict[str, str]:
    """The names that are another spelling, or the plural, of one among `names` → that one, which leads no further.

    Two spellings of a synset are one word where they differ in hyphens and spaces, have a plural in common, or differ in a
    letter and stand in the same synsets ("scooter" is a scoter's name, too). The synset's first one is kept. A plural in -s
    goes under its singular whatever WordNet says: its own sense ("glasses") cannot be told from its looks. Other plurals must
    share a synset with the singular: a dolmen is no plural of dolman.
    """
    among = set(names)
    senses = [[name for name in (lemma.lower() for lemma in synset) if name in among] for synset in synsets]
    stands_in: dict[str, set[int]] = {}
    for number, synset in enumerate(senses):
        for name in synset:
            stands_in.setdefault(name, set()).add(number)

    def is_spelling(one: str, other: str) -> bool:
        if letters(one) == letters(other) or plural_of(one) == plural_of(other):
            return True
        return stands_in[one] == stands_in[other] and one_edit(letters(one), letters(other))

    leads: dict[str, str] = {}

    def end(name: str) -> str:
        while name in leads:
            name = leads[name]
        return name

    def join(name: str, kept: str) -> None:
        if end(name) != end(kept):
            leads[end(name)] = end(kept)

    for synset in senses:
        for kept, name in combinations(synset, 2):
            if is_spelling(name, kept):
                join(name, kept)
    lemmas = NounLemmas()
    written = {spelling(name): name for name in sorted(among)}
    for form, name in written.items():
        *opening, last = form.split()
        for lemma in lemmas(last)[:-1]:
            singular = written.get(" ".join([*opening, lemma]), name)
            if singular != name and (last == plural_of(lemma) or stands_in.get(name, set()) & stands_in.get(singular, set())):
                join(name, singular)
    return {name: end(name) for name in leads}


def letters(name: str) -> str:
    """A name without hyphens, spaces and apostrophes."""
    return re.sub(r"[^a-z]", "", name)


def plural_of(word: str) -> str:
    """The regular plural."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return re.sub(r"y$", "ie", word) + "s" if re.search(r"[^aeiou]y$", word) else word + "s"


def one_edit(one: str, other: str) -> bool:
    """Whether one letter is added, left out, changed, or swapped with the next."""
    opening = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[opening:], other[opening:]
    return one[1:] == other or one == other[1:] or one[1:] == other[1:] or (one[:2] == other[1::-1] and one[2:] == other[2:])


def as_text(names: dict[str, str]) -> str:
    """The file: a name per line, sorted, and its canonical name after a tab where that is another one."""
    return "".join(f"{name}\n" if name == canonical else f"{name}\t{canonical}\n" for name, canonical in sorted(names.items()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = Path(__file__).parents[1] / "filtering" / "captions" / "lexicon" / "imagenet21k.tsv"
    parser.add_argument("--out", type=Path, default=shipped)
    args = parser.parse_args()
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        raise SystemExit("timm is not installed: pip install timm")
    names = build(Path(timm.origin).parent / "data" / "_info")
    args.out.write_text(as_text(names), encoding="utf-8")
    print(f"{args.out}: {len(names)} names, {sum(name != canonical for name, canonical in names.items())} of them compounds")


if __name__ == "__main__":
    main()
