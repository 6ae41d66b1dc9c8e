"""Open-world segmentation learned from captions: encoders, methods, losses, training, evaluation. Tensors in, tensors out."""

import difflib
from collections.abc import Iterable

from storage import InputError as InputError


def near_miss(name: str, choices: Iterable[str]) -> str:
    """ " (did you mean 'tcl'?)" where one of `choices` looks like `name`; otherwise nothing."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
