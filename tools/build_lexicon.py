"""Build `filtering/captions/lexicon/imagenet21k.tsv`, names of visible things, from the ImageNet-21k synsets that timm ships.

    python tools/build_lexicon.py [--out filtering/captions/lexicon/imagenet21k.tsv]

A line is a name in lower case; a compound whose definition says that it is a kind of its last word ("coffee table: low table
where ...") has that word in a second column, so that a caption's coffee table counts as a table, while the teddy bear of
`extra.txt` and the hot dog stay what they are. Of WordNet's sections only those of visible things are taken (no sports,
colours, shapes, people by name). What is missing, or misleads, is corrected by hand in the files beside the output.
"""

import argparse
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

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
    """Whether a lemma has the form of a name that captions use: letters, a hyphen or apostrophe, at most three words."""
    return bool(re.fullmatch(r"[A-Za-z](['-]?[A-Za-z])+( [A-Za-z](['-]?[A-Za-z])+){0,2}", lemma))


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
    """Name in lower case → canonical name, which is the name itself or the head of a transparent compound."""
    definitions = dict(read(info, "definition"))
    lemmas = [
        (lemma, synset)
        for synset, text in read(info, "lemma")
        if section_of(synset)
        for lemma in text.split(", ")
        if usable(lemma)
    ]
    common = {lemma for lemma, _ in lemmas if lemma.islower()}
    names, heads = {}, {}
    for lemma, synset in lemmas:
        if lemma in common or lemma.split()[-1] in common:  # "Siamese cat", but no people by name and no Latin species
            names[lemma.lower()] = lemma.lower()
            if head := head_of(lemma, definitions[synset]):
                heads[lemma.lower()] = head
    return names | {name: head for name, head in heads.items() if head in names}


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
