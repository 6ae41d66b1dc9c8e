"""A user's own dataset: folders of images and label maps, and a list of names, from the config alone."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from owseg import InputError
from owseg.evaluation.datasets import DATASETS, IGNORE, EvalDataset, Item
from owseg.listing import files_below

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})


@dataclass(frozen=True, kw_only=True)
class Suffixes:
    """How file names end."""

    images: str = ""
    """Ending of images' names, such as "_leftImg8bit.png"; empty = any image's."""
    labels: str = ".png"
    """Ending of label maps' names."""


@dataclass(frozen=True, kw_only=True)
class OwnDataset:
    """Images and label maps of the same size in two folders; an image's id is its path below the folder without the ending."""

    name: str
    """Name in results and MLflow: letters, digits, "_" and "-"."""
    images: str
    """Folder of the images; folders below it count."""
    labels: str
    """Folder of the label maps, at the same places: 8 or 16 bits in one channel, a palette, or colours (see `colours`)."""
    names: str
    """File of class names, one a line in label order; commas part a class's synonyms."""
    split: str = ""
    """File of image ids, one a line; empty = every image."""
    suffix: Suffixes = Suffixes()
    """How file names end."""
    ignore: int | None = IGNORE
    """Label of pixels that do not count; null = there is none."""
    reduce_zero_label: bool = False
    """Whether label 0 does not count either and label k means class k - 1."""
    background: str | None = None
    """The class of label 0 where it is the background, which methods draw without a name; null = there is none."""
    prompt_names: str = ""
    """File of what is shown to the text tower instead, as many lines as `names`; empty = the names."""
    colours: str = ""
    """File of "R G B", one a line in label order, for label maps in colours (the ignored label has a line, too)."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise InputError(f"name: {self.name!r} must be letters, digits, _ and -")
        if self.name in DATASETS or self.name == "average":
            raise InputError(f"name: {self.name!r} is a benchmark's; choose another")
        for key in ("images", "labels", "names"):
            if not getattr(self, key):
                raise InputError(f"{key}: is empty; give a {'file' if key == 'names' else 'folder'}")
        if self.reduce_zero_label and self.background is not None:
            raise InputError("background: label 0 does not count with reduce_zero_label; set one of the two")

    def located(self) -> "OwnDataset":
        """The same with absolute paths, for workers that have another working directory."""
        paths = {key: getattr(self, key) for key in ("images", "labels", "names", "split", "prompt_names", "colours")}
        found: dict[str, Any] = {key: str(Path(path).expanduser().resolve()) for key, path in paths.items() if path}
        return replace(self, **found)

    def dataset(self) -> EvalDataset:
        """The row of it. Raises InputError where its lists cannot be read or do not fit each other."""
        lines = _lines(Path(self.names), f"{self.name}.names")
        names = tuple(line.split(",")[0].strip() for line in lines)
        if repeated := next((name for number, name in enumerate(names) if name in names[:number]), None):
            raise InputError(f"{self.names}: names {repeated!r} twice; first names must be unique")
        if len(names) > IGNORE:
            raise InputError(f"{self.names}: has {len(names)} classes; at most {IGNORE} can be told apart")
        label = None if self.ignore is None else self.ignore - self.reduce_zero_label
        if label is not None and 0 <= label < len(names):
            raise InputError(f"{self.name}.ignore: {self.ignore} is the label of {names[label]!r}; give another, or null")
        if self.background is not None and names[0] != self.background:
            raise InputError(f"{self.name}.background: {self.background!r} must be the first class of {self.names}")
        return EvalDataset(
            name=self.name,
            names=names,
            files=OwnFiles(self),
            background=self.background is not None,
            reduce_zero=self.reduce_zero_label,
            ignore=self.ignore,
            colours=self._colours(len(names) + self.reduce_zero_label) if self.colours else (),
        )

    def _colours(self, labels: int) -> tuple[tuple[int, int, int], ...]:
        found = _colours(Path(self.colours))
        if len(found) < labels:
            raise InputError(f"{self.colours}: has {len(found)} colours for {labels} labels; give each a line")
        return found

    def texts(self) -> tuple[str, ...]:
        """The lines that the text tower is shown, in label order."""
        names = _lines(Path(self.names), f"{self.name}.names")
        if not self.prompt_names:
            return names
        texts = _lines(Path(self.prompt_names), f"{self.name}.prompt_names")
        if len(texts) != len(names):
            raise InputError(f"{self.prompt_names}: has {len(texts)} lines for the {len(names)} classes of {self.names}")
        return texts


@dataclass(frozen=True)
class OwnFiles:
    """Where images and label maps of an own dataset lie; what `datasets.Files` is for the benchmarks."""

    own: OwnDataset
    count: int = 0
    """Images of the official set: there is none."""

    def find(self, root: Path) -> list[Item]:
        """Its items; the benchmarks' folder is not looked at. Raises InputError for a missing folder or list."""
        del root
        own, folder = self.own, Path(self.own.images).expanduser()
        if not folder.is_dir():
            raise InputError(f"{own.name}: images: {own.images} is no folder")
        found: dict[str, Path] = {}
        for path in sorted(files_below(folder)):
            if id_ := self._id(path.relative_to(folder).as_posix()):
                if id_ in found:
                    raise InputError(f"{own.name}: {found[id_]} and {path} have one id; set suffix.images")
                found[id_] = path
        ids = self._listed(found) if own.split else list(found)
        labels = Path(own.labels).expanduser()
        missing = own.suffix.images or ".*"
        return [Item(id_, found.get(id_, folder / f"{id_}{missing}"), labels / f"{id_}{own.suffix.labels}") for id_ in ids]

    def obtain(self, root: Path) -> str:
        """What to do where images or label maps are missing."""
        del root
        return f"see images, labels, suffix and split of {self.own.name} in evaluate.datasets"

    convert = obtain

    def _id(self, path: str) -> str:
        """The id of an image; empty for a file that is none."""
        ending = self.own.suffix.images
        if ending:
            return path.removesuffix(ending) if path.endswith(ending) else ""
        suffix = Path(path).suffix
        return path.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else ""

    def _listed(self, found: Collection[str]) -> list[str]:
        """The ids of the split file; an ending of an image is cut off, and what follows a space where that is no id."""
        ids: dict[str, None] = {}
        for line in _lines(Path(self.own.split), f"{self.own.name}.split"):
            whole, first = (self._id(text) or text for text in (line.strip(), line.split()[0]))
            ids[whole if whole in found else first] = None
        return list(ids)


def _lines(path: Path, key: str) -> tuple[str, ...]:
    """The lines of a list. Raises InputError, naming its setting, where it is missing or empty, or a line says nothing."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{key}: {path} cannot be read ({reason}); give a text file in UTF-8, one a line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(f"{key}: {path} is empty; give a line for each")
    for number, line in enumerate(lines, 1):
        if not line.split(",")[0].strip():
            raise InputError(f"{key}: {path}, line {number} names nothing; labels are counted by lines, so give each a name")
    return tuple(lines)


def _colours(path: Path) -> tuple[tuple[int, int, int], ...]:
    found = []
    for number, line in enumerate(_lines(path, "colours"), 1):
        parts = line.replace(",", " ").split()
        if len(parts) != 3 or not all(part.isdecimal() and int(part) < 256 for part in parts):
            raise InputError(f'{path}, line {number}: {line!r} is not of the form "R G B", 0 to 255')
        found.append((int(parts[0]), int(parts[1]), int(parts[2])))
    if len(set(found)) != len(found):
        raise InputError(f"{path}: a colour stands for two labels; give each a colour of its own")
    return tuple(found)
