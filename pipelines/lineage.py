"""Who saw this image? A link, a key, an image file or a list of links and keys in; what became of each out.

    owseg lineage https://example.org/cat.jpg run_dir=runs/tcl
    owseg lineage links.txt --json run_dir=runs/tcl run_dir=s3://bucket/other
    owseg lineage --forget opted_out.txt run_dir=runs/tcl

For each: whether the filter kept it and the download obtained it, in which shard it lies, which trainings showed it in which
steps, and which checkpoints have these steps behind them. An image file is found by its bytes, or by how it looks.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError, load
from pipelines.app.streams import complain

if TYPE_CHECKING:  # torch takes seconds to load, and --help has no need of it
    from pipelines.app.settings import Config
    from pipelines.lineages.answer import Answer

RUN_DIR = "run_dir="
DEFAULT_RUN = "runs/demo"
IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")
"""How files begin that are taken for images; AVIF's sign comes later."""


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    return run_parsed(_parser(), argv, run)


def run(given: argparse.Namespace) -> None:
    """Look up what is asked for in each run, or have it forgotten there."""
    from pipelines.app.read_run import config_of, open_to_read
    from pipelines.lineages.shown import show

    asked, runs, settings = _taken_apart(given.what)
    if bool(asked) == bool(given.forget):
        raise ConfigError("give what to look for (a link, a key or a file), or --forget FILE; see --help")
    answers: list[Answer] = []
    notes: list[str] = []
    for folder in runs:
        at = _settings(folder, settings)
        if given.forget:
            answers += _forget(at, Path(given.forget), notes, quiet=given.json)
        else:
            config = config_of(open_to_read(at.run_dir, at.storage))
            answers += [answer for one in asked for answer in _look_up(config, one, notes)]
    for note in dict.fromkeys(notes):
        complain(note)
    show(answers, as_json=given.json)


def _taken_apart(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What is asked for, the runs, and settings of the store."""
    runs = [word.removeprefix(RUN_DIR) for word in words if word.startswith(RUN_DIR)]
    settings = [word for word in words if word.startswith("storage.") and "=" in word]
    asked = [word for word in words if not word.startswith(RUN_DIR) and word not in settings]
    for word in asked:
        if not word.strip():
            raise ConfigError(f"{word!r} is neither a link nor a key nor a file; give what to look for")
        if not os.path.isfile(word) and any("\ud800" <= sign <= "\udfff" for sign in word):
            raise ConfigError(f"{word!a} holds bytes that are no text: no link and no key has them, and there is no such file")
    return asked, runs or [DEFAULT_RUN], settings


def _settings(folder: str, settings: Sequence[str]) -> "Config":
    """Where a run is, and how its store is reached."""
    from pipelines.app.run_files import named_folder
    from pipelines.app.settings import Config

    if "://" not in folder:
        named_folder(folder)
    return load(Config, None, [*settings, f"{RUN_DIR}{folder}"])


def _look_up(config: "Config", asked: str, notes: list[str]) -> "list[Answer]":
    from filtering.link_set import read_links
    from pipelines.lineages.look_up import look_up, look_up_image

    file = Path(asked)
    if "://" in asked or not os.path.isfile(file):  # a key may be too long for a file's name
        if "/" in asked and "://" not in asked and not config.train.shards:
            raise ConfigError(f"{asked}: there is no such file, and it is neither a link nor a key")
        return look_up(config, [asked], notes)
    with file.open("rb") as opened:
        head = opened.read(16)
    if not head.startswith(IMAGES) and b"ftyp" not in head:
        return look_up(config, read_links(file).names, notes)
    if config.train.shards:
        raise ConfigError(f"{asked}: own tars (train.shards) have no digests of images; give a link or a key")
    found = look_up_image(config, file, notes)
    if not found:
        raise ConfigError(f"{asked}: the download of {config.run_dir} has no image that is this one or looks like it")
    return found


def _forget(at: "Config", file: Path, notes: list[str], *, quiet: bool) -> "list[Answer]":
    """Hold the run, put the file's links and keys on its list, and tell what follows."""
    from filtering.link_set import read_links
    from pipelines.app.read_run import config_of, ensure_run
    from pipelines.app.run_dir import held_folder
    from pipelines.lineages.forget import consequences, forget

    links = read_links(file)
    ensure_run(at.run_dir, at.storage)
    with held_folder(at, None) as folder:
        answers = forget(config_of(folder), links, notes)
        for line in [] if quiet else consequences(answers, folder):
            print(line)
    return answers


def _parser() -> Parser:
    usage = f"{command_name()} LINK|KEY|FILE ... | --forget FILE [--json] [run_dir=FOLDER ...] [storage.key=value ...]"
    parser = Parser(usage=usage, description=__doc__)
    parser.add_argument("what", nargs="*", help="links, keys and files; run_dir=FOLDER names the runs (without it runs/demo)")
    parser.add_argument("--forget", metavar="FILE", help="leave these links and keys out of all later shards and batches")
    parser.add_argument("--json", action="store_true", help="print all that is known as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
