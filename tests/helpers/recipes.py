"""The recipes of docs/extending.md, as tests follow them."""

import re

from helpers.paths import REPO


def recipe(opening: str) -> list[str]:
    """The blocks of Python under a paragraph that opens so."""
    text = (REPO / "docs" / "extending.md").read_text()
    (section,) = re.findall(rf"^\*\*{opening}\*\*.*?(?=^\*\*|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
