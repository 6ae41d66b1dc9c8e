"""Further names of classes, from files of lines "class: name, name"; what becomes of them is said in `presets.Protocol`."""

from collections.abc import Collection
from pathlib import Path

from owseg import InputError, near_miss

LEXICON = "lexicon"
"""In place of a file: the list that is shipped, with classes of all benchmarks."""
SHIPPED = Path(__file__).with_suffix(".txt")

Synonyms = dict[str, tuple[str, ...]]
"""Class → its further names."""


def synonym_file(given: str, dataset: str) -> Path:
    """The file that holds the names for a dataset: the one that `given` names, or the dataset's own in the folder."""
    path = SHIPPED if given == LEXICON else Path(given).expanduser()
    return path / f"{dataset}.txt" if path.is_dir() else path


def read_synonyms(path: Path, known: Collection[str] | None = None) -> Synonyms:
    """Read a file; lines that open with "#" are comments. Spaces around names do not count.

    Raises InputError that names the line for one that is no such line, a class that has a line already or is not `known`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f'evaluate.synonyms: {path} cannot be read ({error}); give a file of lines "class: name, name", '
            f'a folder with one for each dataset, or "{LEXICON}"'
        ) from error
    classes = None if known is None else {name.strip() for name in known}
    found: Synonyms = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        class_, _, rest = line.partition(":")
        class_, names = class_.strip(), tuple(filter(None, map(str.strip, rest.split(","))))
        if not class_ or not names:
            raise InputError(f'{path}, line {number}: {line.strip()!r} is not of the form "class: name, name"')
        if classes is not None and class_ not in classes:
            raise InputError(f"{path}, line {number}: {class_!r} is no class of the set{near_miss(class_, classes)}")
        if class_ in found:
            raise InputError(f"{path}, line {number}: {class_!r} has a line already; give all of its names in one")
        found[class_] = names
    if not found:
        raise InputError(f'evaluate.synonyms: {path} names no class; give lines "class: name, name"')
    return found
