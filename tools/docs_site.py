"""Hooks of MkDocs (`make docs`): pages that lie outside docs/, and the reference of all settings.

The README, CONTRIBUTING, ... are pages of the site, other files of the repository that pages link to are files of it.
"""

import html
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from pipelines.app.describe import Entry

REPO = Path(__file__).resolve().parents[1]
HOME = {"README.md": "index.md"}
"""Pages that are called otherwise on the site. The other README, of docs/, is the navigation there."""
ELSEWHERE = re.compile(r"(?<=\]\()\.\./(?P<path>[^)#\s]+)")
"""The way out of docs/ in a link."""
FROM_ROOT = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s]+")
"""A link of a page in the repository's root, without what leads to other hosts or stays on the page."""
REFERENCE = "configuration.md"

sys.path.insert(0, str(REPO))  # MkDocs is started from anywhere


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository's root, what pages link to outside docs/, and the reference."""
    for page in sorted(REPO.glob("*.md")):
        text = page.read_text(encoding="utf-8").replace("](docs/README.md", "](README.md")
        text = FROM_ROOT.sub(r"../\g<0>", text).replace("](../docs/", "](")
        files.append(File.generated(config, HOME.get(page.name, page.name), content=text))
    linked = {match["path"] for page in files.documentation_pages() for match in ELSEWHERE.finditer(page.content_string)}
    for path in sorted(linked):
        if not path.endswith(".md") and (REPO / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(REPO / path)))
    files.append(File.generated(config, REFERENCE, content=reference()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links that leave docs/ lead to the same page or file of the site."""
    return ELSEWHERE.sub(lambda link: HOME.get(link["path"], link["path"]), markdown)


def reference() -> str:
    """Every setting with its type, default and meaning, a table for each section, as Markdown."""
    from pipelines.app.describe import describe
    from pipelines.app.settings import Config

    entries = describe(Config)
    sections = {entry.key: entry.meaning for entry in entries if entry.type == "a section" and "." not in entry.key}
    lines = [
        "# Configuration",
        "",
        "Every setting of a run, from the code that reads it; `--help all` prints the same. `key(name)` is a setting of that",
        "alternative, `key.0` one of each item of a list, `key.<name>` one of each entry of a mapping. How values are written:",
        "[values on the command line](exit_codes.md#values-on-the-command-line).",
        "",
        *_table("The run", "", [entry for entry in entries if _root(entry.key) not in sections]),
    ]
    for name, meaning in sections.items():
        inside = [entry for entry in entries if _root(entry.key) == name and entry.key != name]
        lines += _table(f"`{name}`", meaning, inside)
    return "\n".join(lines)


def _root(key: str) -> str:
    return re.split(r"[.(]", key)[0]


def _table(title: str, meaning: str, entries: Sequence["Entry"]) -> list[str]:
    lines = [f"## {title}", "", meaning, "", "| key | takes | default | meaning |", "|---|---|---|---|"]
    for entry in entries:
        default = f"`{_cell(entry.default)}`" if entry.default else ""
        lines.append(f"| `{entry.key}` | {_cell(entry.type)} | {default} | {html.escape(_cell(entry.meaning), quote=False)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
