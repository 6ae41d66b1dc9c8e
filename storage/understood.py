"""Files that this program wrote and reads again, when somebody else may have changed them: their shape, and what is damaged."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from storage import InputError

Errors = tuple[type[Exception], ...]

MISFITS: Errors = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What is raised where a file holds something else than the code that takes it apart thinks."""
UNUSABLE: Errors = (OSError, *MISFITS)
"""The same, and what reading the file raises."""
LEFT_OUT = "it is left out"
"""The end of a line on what others go on without."""
_LONGEST = 200


@contextmanager
def understood(file: Path | str, cure: str, *, also: Errors = ()) -> Iterator[None]:
    """Within the block a file is read: what does not fit raises InputError, one line that names the file and the cure.

    `also` are what the file's reader raises.
    """
    try:
        yield
    except MISFITS + also as error:
        if isinstance(error, InputError):
            raise
        raise _told(file, cure, error) from error


class Noted:
    """The same for those who can go on without the file: the line goes into `notes`, and the block is left."""

    def __init__(self, file: Path | str, notes: list[str], cure: str = LEFT_OUT, *, also: Errors = ()) -> None:
        self._file, self._notes, self._cure, self._kinds = file, notes, cure, MISFITS + also

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception) or not isinstance(error, self._kinds):
            return False
        self._notes.append(str(error if isinstance(error, InputError) else _told(self._file, self._cure, error)))
        return True


def _told(file: Path | str, cure: str, error: Exception) -> InputError:
    return InputError(f"{file}: is damaged ({_reason(error)}); {cure}")


def shaped(value: Any, shape: Any, where: str = "") -> Any:
    """`value` itself, if it is of a shape. Raises TypeError that says where it is not.

    A shape is a type (float: any finite number; int: no bool), None, a tuple of these of which one fits, `[shape]` for a list,
    `[shape, shape, ...]` for one of that length, or `{key: shape}` for a mapping that has these keys at least; the key `str`
    stands for all others.
    """
    if isinstance(shape, dict):
        _misfit_unless(isinstance(value, dict), value, "no mapping", where)
        for key in shape.keys() - {str}:
            _misfit_unless(key in value, value, f"without {key!r}", where)
        for key in value if str in shape else shape.keys():
            shaped(value[key], shape.get(key, shape.get(str)), f"{where}.{key}" if where else str(key))
    elif isinstance(shape, list):
        _misfit_unless(isinstance(value, list), value, "no list", where)
        _misfit_unless(len(shape) in (1, len(value)), value, f"not of {len(shape)} items", where)
        for number, item in enumerate(value):
            shaped(item, shape[number if len(shape) > 1 else 0], f"{where}.{number}" if where else str(number))
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        _misfit_unless(any(_is_a(value, kind) for kind in kinds), value, "of another kind", where)
    return value


def fits(value: Any, shape: Any) -> bool:
    """Whether `value` is of a shape, as `shaped` has it."""
    try:
        shaped(value, shape)
    except MISFITS:
        return False
    return True


def json_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The mappings in a log of JSON lines; a line that is none is passed over, such as the last where a process was killed."""
    for line in content.decode(errors="replace").split("\n")[:-1]:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            yield told


def _is_a(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _misfit_unless(fit: bool, value: Any, wrong: str, where: str) -> None:
    if not fit:
        raise TypeError(f"{where or 'it'} is {wrong}: {_short(value)}")


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} is missing" if isinstance(error, KeyError) else text[:_LONGEST]
