"""The site of `make docs`: links and anchors hold, every page and setting is in it, and it asks the network for nothing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from helpers.documented import PAGES, blocks_of
from helpers.paths import REPO
from pipelines.app.describe import describe
from pipelines.app.settings import Config

INDEX = REPO / "docs" / "README.md"
"""Its place is taken by the site's navigation."""
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload)[^>]*//"
)
"""What a browser asks another host for when it opens a page."""
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
WIDEST = 120
"""Columns of a line of prose; tables and code are as wide as they are, and what cannot be parted stays whole."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link without its page, or an anchor without its heading, is an error."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(REPO / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def pages_in(site: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(site.glob("*.html")):
        yield file.name, file.read_text(encoding="utf-8")


def test_pages_ask_no_other_host(site: Path) -> None:
    assert FETCHED.search('<script src="https://cdn.example/x.js"></script>')
    for name, page in pages_in(site):
        assert not (found := FETCHED.search(page)), f"{name}: {found}"


def test_tables_are_tables(site: Path) -> None:
    """A row that an empty line has parted from its table is a paragraph of bars."""
    for name, page in pages_in(site):
        assert not (found := re.search(r"<p>\|.*", page)), f"{name}: {found}"


def test_every_page_is_in_the_site_and_in_the_index(site: Path) -> None:
    index = INDEX.read_text(encoding="utf-8")
    for page in PAGES:
        if page.exists() and page != INDEX:
            assert (site / ("index.html" if page.name == "README.md" else f"{page.stem}.html")).exists(), page
            assert f"({page.name})" in index or f"(../{page.name})" in index, f"docs/README.md: no link to {page.name}"


def test_every_picture_is_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.exists())
    assert not [file.name for file in (REPO / "docs" / "pictures").iterdir() if f"pictures/{file.name})" not in text]


def test_every_setting_is_in_the_reference(site: Path) -> None:
    reference = (site / "configuration.html").read_text(encoding="utf-8")
    for entry in describe(Config):
        key = entry.key.replace("<", "&lt;").replace(">", "&gt;")
        assert f"<code>{key}</code>" in reference or entry.type == "a section", entry.key


@pytest.mark.parametrize(
    "page", [page for page in (*PAGES, REPO / "CHANGELOG.md") if page.exists()], ids=lambda page: page.name
)
def test_pages_read_well_as_files(page: Path) -> None:
    """Links between files lead somewhere, and prose is wrapped."""
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        generated = target == "configuration.md"  # the site's alone
        assert generated or (page.parent / target).exists(), f"{page.name}: no {target}"
    code = {line for block in blocks_of(page) for line in block.text.splitlines()}
    for number, line in enumerate(text.splitlines(), 1):
        prose = not line.lstrip().startswith(("|", "<", "!", "#")) and line.strip() not in {one.strip() for one in code}
        if prose and len(line) > WIDEST:
            assert max(map(len, line.split())) > 40, f"{page.name}:{number}: {len(line)} columns; wrap it at some 110"
