"""What systems, editors and unfinished jobs leave in folders of links, by name.

`owseg.listing` goes by the same names; `tests/helpers/leftovers.py` has the table that both are held against.
"""

LEFTOVERS = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "folder.ini", "icon\r"),
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"),
        "__pycache__",
    )
)
"""Names, in lower case, of files and folders that Windows, macOS, network drives and Python leave."""
ENDINGS = ("~", ".swp", ".swo", ".tmp", ".part", ".partial", ".crdownload", ":zone.identifier", "@synoeastream")
"""Ends of names, in lower case, of editors' backups, downloads under way and what systems note beside a file."""


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: hidden (macOS' `._name.tsv`, .DS_Store), or left by a program."""
    lower = name.lower()
    autosaved = len(lower) > 1 and lower.startswith("#") and lower.endswith("#")
    return lower.startswith((".", "~$")) or lower.endswith(ENDINGS) or lower in LEFTOVERS or autosaved


def is_looked_into(folder: str) -> bool:
    """Whether a folder of this name holds data: none that is left over, or an unfinished job's (Spark's `_temporary`)."""
    return not folder.startswith("_") and not is_leftover(folder)


def is_data(way: str) -> bool:
    """Whether neither a file nor a folder on the way to it ("a/b/links.tsv") is a leftover."""
    *folders, name = way.split("/")
    return not is_leftover(name) and all(map(is_looked_into, folders))
