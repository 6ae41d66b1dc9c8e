"""Which columns of a table hold the URLs and the captions: their positions, since names may be empty or occur twice."""

from collections.abc import Callable, Iterable, Sequence

from filtering import InputError
from filtering.captions.formats.source import SourceConfig
from filtering.samples import CAPTION_NAMES, plain_name

URL_NAMES = ("url", "imageurl", "imgurl", "imagelink", "link", "href", "src", "uri", "photourl", "image")

Fits = Callable[[int], bool]
"""Whether the column at a position can be what is looked for."""


def find_columns(
    names: Sequence[str],
    source: SourceConfig,
    path: str,
    *,
    url_fits: Fits,
    caption_fits: Fits,
    has_values: Fits = lambda position: True,
) -> list[int]:
    """The positions of the URL, the caption and the columns to keep: those asked for, else the best known ones, in any case.

    Of columns that may be meant the first that fits and has values is taken, else the first that fits, or the first if none
    does. InputError if there is none, or where several are called what is to be kept.
    """
    url = _best(_called_for(names, source.url_column, URL_NAMES, "url_column", path), url_fits, has_values)
    others = [position for position in range(len(names)) if position != url]

    def caption_elsewhere(position: int) -> bool:
        return position != url and caption_fits(position)

    if not source.caption_column and not others:
        raise InputError(f"filter.source.path: {path} has no column beside the URLs; captions are needed too")
    captions = _called_for(names, source.caption_column, CAPTION_NAMES, "caption_column", path)
    caption = _best(captions, caption_elsewhere, has_values)
    return [url, caption, *kept_columns(names, source, path)]


def kept_columns(names: Sequence[str], source: SourceConfig, path: str) -> list[int]:
    """The positions of `keep_columns`. InputError where one is missing, or several have its name."""
    positions = []
    for wanted in source.keep_columns:
        position, *others = _called_for(names, wanted, (), "keep_columns", path)
        if others:
            raise InputError(f"filter.source.keep_columns: {path} has {1 + len(others)} columns {wanted!r}; rename one of them")
        positions.append(position)
    return positions


def _best(candidates: Sequence[int], fits: Fits, has_values: Fits) -> int:
    fitting = list(filter(fits, candidates))
    if len(fitting) > 1:
        return next(filter(has_values, fitting), fitting[0])
    return next(iter(fitting), candidates[0])


def _called_for(names: Sequence[str], wanted: str, known: Iterable[str], key: str, path: str) -> list[int]:
    """The positions of the columns that may be meant, the likeliest first."""
    if wanted:
        candidates = [position for position, name in enumerate(names) if name == wanted] or _called(names, plain_name(wanted))
        if not candidates and wanted.isdecimal() and 1 <= int(wanted) <= len(names):
            candidates = [int(wanted) - 1]
    else:
        candidates = [position for name in known for position in _called(names, name)]
    if not candidates:
        missing = f"no column {wanted!r}" if wanted else f"no column that looks like the {key.removesuffix('_column')}s"
        raise InputError(f"filter.source.{key}: {missing} in {path}; it has: {', '.join(name or repr(name) for name in names)}")
    return candidates


def _called(names: Sequence[str], plain: str) -> list[int]:
    """The positions of the columns that are called `plain`, whatever the case; nothing is called by no name at all."""
    return [position for position, name in enumerate(names) if plain and plain_name(name) == plain]
