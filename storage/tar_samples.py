"""What counts as a sample in a WebDataset tar: its files by name, and what its JSON says of captions and entities."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from storage import InputError
from storage.tars import DamagedTarError, Member, members

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Of several images of a sample, the first of these counts."""
CAPTION, ABOUT = ".txt", ".json"
SIZES = "sizes.json"
"""What a folder of tars says of the samples in each."""
MARKERS = "_done"
"""The folder beside tars that this project's download wrote."""

Files = dict[str, Member]
"""The files of a sample by suffix."""


class Found(NamedTuple):
    """A sample, if only half of one."""

    key: str
    image: Member | None
    caption: Member | None
    about: Member | None


class Told(NamedTuple):
    """What a sample's JSON says."""

    captions: list[str]
    """Where they are several; otherwise none."""
    lists: list[list[str]]
    """The entities of each of several captions; none where they are not lists of names, or not as many."""
    own: list[str] | None
    """The entities of its one caption; None where it has no such list."""

    def entities(self) -> list[str] | None:
        """Those of all captions, each once; None where there are none to be had."""
        names = [name for some in self.lists for name in some] if self.lists else self.own
        return None if names is None else list(dict.fromkeys(names))


def samples_of(tar: Path) -> list[Found]:
    """The samples of a tar: those of one name together, in the order in which names first appear.

    Raises InputError where it is unreadable, cut or damaged, with the number of samples that can still be read.
    """
    groups: dict[str, list[Files]] = {}
    try:
        for member in members(tar):
            sample, suffix = sample_of(member.name)
            if sample:
                same = groups.setdefault(sample, [{}])
                if suffix in same[-1]:  # a file that a sample has already begins another one of that name
                    same.append({})
                same[-1][suffix] = member
    except DamagedTarError as damage:
        _refuse(tar, f"not a whole tar ({damage})", sum(1 for _ in _samples(groups)))
    except OSError as error:
        raise InputError(f"{tar}: cannot be read ({error.strerror})") from error
    return list(_samples(groups))


def sample_of(name: str) -> tuple[str, str]:
    """The sample that a file in a tar belongs to, and what of it the file is: its suffix in lower case.

    The suffix of images, captions and JSON is what follows the last dot, as in "Track 2.0.jpg"; of other files, what follows
    the first. Hidden files, which systems leave, belong to none: "".
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    if file.startswith(".") or not file:
        return "", ""
    stem, dot, suffix = file.rpartition(".")
    suffix = f".{suffix.lower()}"
    if not dot or suffix not in _SUFFIXES:
        stem, dot, suffix = file.partition(".")
        suffix = dot + suffix.lower()
    return f"{folder}{slash}{stem}", suffix


_SUFFIXES = frozenset((*IMAGE_SUFFIXES, CAPTION, ABOUT))


def _samples(groups: dict[str, list[Files]]) -> Iterator[Found]:
    for key, several in groups.items():
        for files in several:
            image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
            caption = files.get(CAPTION)
            if (image and caption) or ((image or caption) and not _is_further(key, groups)):
                yield Found(key, image, caption, files.get(ABOUT))


def _is_further(key: str, groups: dict[str, list[Files]]) -> bool:
    """Whether a file belongs to another sample: "1.seg.png" is none of its own beside "1.jpg"."""
    folder, slash, name = key.rpartition("/")
    first = f"{folder}{slash}{name.partition('.')[0]}"
    return first != key and first in groups


def told_by(about: bytes) -> Told:
    """What JSON says of captions and entities; nothing where it is none, or says it in another form."""
    found = parsed(about)
    captions, own = _names(found.get("captions")) or [], _names(found.get("entities"))
    if len(captions) < 2 or not all(caption.strip() for caption in captions):
        return Told([], [], own)
    lists = found.get("caption_entities")
    entities = [names for some in lists if (names := _names(some)) is not None] if isinstance(lists, list) else []
    return Told(captions, entities if len(entities) == len(captions) else [], own)


def parsed(about: bytes) -> dict[str, Any]:
    """A sample's JSON; an empty one where it is damaged or no object."""
    try:
        found = json.loads(about)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(value: Any) -> list[str] | None:
    """A list of strings; None for everything else."""
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


# ---- what is recorded beside a tar


def refuse_fewer(tar: Path, found: int) -> None:
    """Raise InputError where a tar holds fewer samples than its record says."""
    if found < (_recorded(tar) or 0):
        _refuse(tar, "samples are missing", found)


def _refuse(tar: Path, what: str, found: int) -> NoReturn:
    recorded = _recorded(tar)
    of = f"{found} of {recorded} samples" if recorded is not None else f"{found} samples"
    cure = "run the download again with the same config, it makes it again"
    cure = cure if (tar.parent / MARKERS).is_dir() else "fetch or make it again"
    raise InputError(f"{tar}: {what}: {of} can be read; {cure}")


def _recorded(tar: Path) -> int | None:
    """How many samples a tar holds, as recorded beside it; None where nothing is."""
    for file, key in ((tar.with_name(SIZES), tar.name), (tar.with_name(f"{tar.stem}_stats.json"), "successes")):
        try:
            number = _record(file, file.stat().st_mtime_ns).get(key)
        except OSError:
            continue
        if isinstance(number, int):
            return number
    return None


@lru_cache(maxsize=2)  # sizes.json is asked for once for each tar
def _record(file: Path, _mtime: int) -> dict[str, Any]:
    return parsed(file.read_bytes())
