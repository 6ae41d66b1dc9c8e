"""What systems and editors leave in folders, and names that only look like it: the table for all that list folders."""

LEFTOVERS = (
    "._cat.png",
    ".DS_Store",
    ".hidden.png",
    "Thumbs.db",
    "THUMBS.DB",
    "desktop.ini",
    "cat.png~",
    "#cat.png#",
    ".#cat.png",
    ".cat.png.swp",
    "cat.png.swp",
    "~$cat.png",
    "cat.png:Zone.Identifier",
    "cat.png.part",
    "cat.png.crdownload",
    "Icon\r",
)
"""Files."""
LEFTOVER_FOLDERS = ("__MACOSX", "@eaDir", ".ipynb_checkpoints", ".Trash-1000", "$RECYCLE.BIN", "__pycache__", "lost+found")
"""Folders, with all that is in them."""
DATA = ("cat.png", "a~b.png", "#1.png", "_cat.png", "thumbs.png", "desktop.jpg", "cat..png", "part.png", "$cat.png")
"""Files that count."""
