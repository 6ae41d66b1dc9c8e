"""`python -m miniature OUT`: build a world, and draw its contact sheet."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from miniature import InputError
from miniature.sheet import contact_sheet
from miniature.world import MARKER, WorldConfig, build_world


def main() -> None:
    """Build, and say what there is."""
    parser = argparse.ArgumentParser(prog="python -m miniature", description="Generate a miniature world.")
    parser.add_argument("out", type=Path, help="the folder to write")
    for field in fields(WorldConfig):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    options = vars(parser.parse_args())
    out: Path = options.pop("out")
    try:
        build_world(WorldConfig(**options), out)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(json.loads((out / MARKER).read_text(encoding="utf-8"))["counts"], indent=1))
    print(contact_sheet(out))


if __name__ == "__main__":
    main()
