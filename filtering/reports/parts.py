"""The pages' environment: Jinja2 templates that escape everything, and the filters that they use.

A page is one file: HTML with its style and charts inside, no script, nothing from the network. What strangers wrote also goes
through `foreign`, and a content policy forbids the rest.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from filtering.files import write_text

SHOWN_TEXT = 240
_OWN = "filtering.reports"

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def write_page(path: Path, template: str, content: Mapping[str, Any], package: str = _OWN) -> None:
    """Write a page; `content` is what its template, in `package` or here, asks for."""
    write_text(path, environment(package).get_template(template).render(content))


@cache
def environment(package: str = _OWN) -> Environment:
    """The templates of a package and of this one. What is not `Markup` is escaped, and a name that is not given is an error."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, _OWN))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals["style"] = Markup((files(_OWN) / "report.css").read_text(encoding="utf-8"))
    made.filters |= {
        "anchor": anchor,
        "count_of": count,
        "foreign": foreign,
        "percent": percent,
        "setting": setting,
        "share": share,
        "spoken": spoken,
        "thousands": "{:,}".format,
    }
    return made


def foreign(value: object, most: int = SHOWN_TEXT) -> str:
    """Foreign text: cut, its control and direction characters replaced. Templates escape it."""
    shown = str(value)
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    return _UNPRINTABLE.sub("\ufffd", shown)


def setting(value: object) -> str:
    if value is None:
        return "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value != "" else "default"


def spoken(name: str) -> str:
    """A rule's or reason's name as words."""
    return foreign(name.replace("_", " "))


def anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def share(part: int, whole: int) -> str:
    return percent(part / max(1, whole))


def percent(value: float) -> str:
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"
