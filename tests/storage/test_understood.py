"""A file's shape is checked as far as it is read, and what does not fit is told in a line that names the file."""

import math
from typing import Any

import pytest

from storage import InputError
from storage.understood import Noted, fits, json_lines, shaped, understood


@pytest.mark.parametrize(
    ("value", "shape", "fit"),
    [
        (1, int, True), (True, int, False), (1, float, True), (math.nan, float, False), (math.inf, float, False),
        (10**400, float, False), (True, float, False), ("x", str, True), (None, (int, None), True), ("x", (int, None), False),
        ([1, 2], [int], True), ([], [int], True), ([1, "x"], [int], False), ({}, [int], False), ([1, 2], [int, int], True),
        ([1], [int, int], False), ([1, 2, 3], [int, int], False), ({"a": 1, "b": None}, {"a": int}, True),
        ({}, {"a": int}, False),
        ({"b": 1}, {str: int}, True), ({"b": "x"}, {str: int}, False), ({"a": "x", "b": 1}, {"a": str, str: int}, True),
        ({"b": 1}, {"a": str, str: int}, False), ([], {}, False), ({"a": {"b": [5]}}, {"a": {"b": [str]}}, False),
        (None, {"a": object}, False), ({"a": None}, {"a": object}, True),
    ],
)  # fmt: skip
def test_shapes(value: Any, shape: Any, fit: bool) -> None:
    assert fits(value, shape) == fit
    if fit:
        assert shaped(value, shape) is value


def test_where_it_does_not_fit_is_told() -> None:
    with pytest.raises(InputError) as error, understood("FILE", "CURE"):
        shaped({"a": [{"b": 1}, {"b": "x" * 100}]}, {"a": [{"b": int}]})
    assert str(error.value) == f'FILE: is damaged (a.1.b is of another kind: "{"x" * 56}...); CURE'


def test_those_who_can_go_on_get_a_note_and_others_errors_pass() -> None:
    notes: list[str] = []
    for wrong in (KeyError("b"), RecursionError("deep"), InputError("FILE: told already"), OverflowError("large")):
        with Noted("FILE", notes):
            raise wrong
    missing = "FILE: is damaged ('b' is missing); it is left out"
    assert notes == [missing, "FILE: is damaged (deep); it is left out", "FILE: told already", notes[-1]]
    with pytest.raises(PermissionError), Noted("FILE", notes):
        raise PermissionError
    with Noted("FILE", notes, also=(PermissionError,)):
        raise PermissionError
    assert notes[-1] == "FILE: is damaged (PermissionError); it is left out"


def test_lines_that_are_none_are_passed_over() -> None:
    log = b'{"a": 1}\n[]\n\n\xff\n{"a"\n' + b"[" * 100_000 + b'\n{"a": 2}\n{"a": 3}'
    assert [line["a"] for line in json_lines(log)] == [1, 2]
