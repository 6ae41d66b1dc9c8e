"""The pieces that reports are made of: the page around them, foreign text made harmless, bars and numbers.

A page is one file: HTML with its style and charts inside, no script, nothing from the network. What strangers wrote goes
through `text`, and a content policy forbids the rest.
"""

import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path

from filtering.files import write_text

SHOWN_TEXT = 240

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def write_page(path: Path, title: str, head: str, sections: Iterable[tuple[str, str]]) -> None:
    """Write a page of `head` and (title, HTML) sections."""
    write_text(path, page(title, head, sections))


def page(title: str, head: str, sections: Iterable[tuple[str, str]]) -> str:
    """The HTML of a page; `head` and what is in the sections is HTML already."""
    sections = list(sections)
    anchors = "".join(f'<a href="#{anchor(name)}">{name}</a>' for name, _ in sections)
    body = "".join(f'<section id="{anchor(name)}"><h2>{name}</h2>{inside}</section>' for name, inside in sections)
    style = (files("filtering.reports") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title>\n"
        f"<style>\n{style}</style></head>\n<body><main>{head}<nav>{anchors}</nav>{body}</main></body></html>\n"
    )


def page_head(kicker: str, title: str, tiles: Iterable[tuple[str, str, str]], digest: str) -> str:
    """The top of a page: what it is, its result in one line, and tiles of (label, value, note)."""
    shown = "".join(f"<div><dt>{label}<dd>{value}<small>{note}</small></div>" for label, value, note in tiles)
    return (
        f"<header><p class=kicker>{kicker}</p><h1>{title}</h1><dl class=tiles>{shown}</dl>"
        f"<p class=digest>digest {text(digest)}</p></header>"
    )


def text(value: object, most: int = SHOWN_TEXT) -> str:
    """Foreign text, harmless: cut, its control and direction characters replaced, and escaped."""
    shown = str(value)
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    return escape(_UNPRINTABLE.sub("\ufffd", shown))


def settings_table(settings: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><th>{text(key)}<td><code>{text(setting(value))}</code>" for key, value in settings.items())
    return f"<table class=settings><tbody>{rows}</table>"


def setting(value: object) -> str:
    if value is None:
        return "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value != "" else "default"


def bar(*parts: tuple[float, str]) -> str:
    """A bar of parts, each a width in percent and a CSS class."""
    return (
        "<div class=bar>"
        + "".join(f'<i class={kind} style="width:{width:.3g}%"></i>' for width, kind in parts if width)
        + "</div>"
    )


def name_of(reason: str) -> str:
    return text(reason.replace("_", " "))


def anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def share(part: int, whole: int) -> str:
    return percent(part / max(1, whole))


def percent(value: float) -> str:
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"
