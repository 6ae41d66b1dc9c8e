"""Published checkpoints in: trained folders as this project writes them. The way back is `owseg export --to official`.

    owseg official import tcl.pth FOLDER
    owseg official import map.pth FOLDER --like TRAINED    with the settings, towers and sizes that TRAINED has

Such a file is accepted wherever trained weights of its method are, too.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError, override
from pipelines.app.models import speaking_of_options
from pipelines.app.new_output import free_place
from pipelines.app.registered import checkpoint_here

if TYPE_CHECKING:  # torch takes seconds to load, and --help has no need of it
    from owseg.checkpoint import Checkpoint

TOWERS = ("image_tower", "text_tower")
"""Settings that no published file tells, and that decide what it fits."""


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    return run_parsed(_parser(), argv, run)


def run(given: argparse.Namespace) -> None:
    """Read the official file, and write a trained folder."""
    from safetensors.torch import save_file

    from owseg.checkpoint import write_model
    from owseg.encoders import build_encoder
    from owseg.fit import WEIGHTS, learned_state
    from owseg.method_config import TrainableConfig
    from owseg.published import load_trained
    from owseg.segmenter import build_trained

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    target = free_place(given.target, "FOLDER")
    found = _read(given)
    config = found.method
    assert found.weights is not None
    assert isinstance(config, TrainableConfig)
    with speaking_of_options(found, given.set):
        method = build_trained(config, lambda: build_encoder(found.encoder))  # frozen weights are in neither: none are loaded
    load_trained(method, config.phases, found.weights)
    weights = target / WEIGHTS
    try:
        target.mkdir(parents=True, exist_ok=True)
        save_file(learned_state(method, config.phases), weights)
        write_model(replace(found, weights=weights))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error})") from error


def _read(given: argparse.Namespace) -> "Checkpoint":
    """The checkpoint that is meant. Raises an InputError or ConfigError for one that has no published form."""
    from owseg.checkpoint import find_checkpoint, located
    from owseg.published import LAYOUTS

    if given.method and given.method not in LAYOUTS:
        raise ConfigError(f"--method: '{given.method}' has no published checkpoints; choose from {', '.join(LAYOUTS)}")
    encoder = {"encoder_model": given.encoder_model, "encoder_weights": given.encoder_weights}
    found = find_checkpoint(checkpoint_here(given.source), given.method, **encoder)
    if found.weights is None or found.method.name not in LAYOUTS:
        raise ConfigError(f"{given.source}: no trained {' or '.join(layout.title for layout in LAYOUTS.values())}")
    if given.like:
        like = find_checkpoint(checkpoint_here(given.like), found.method.name, **encoder)
        found = replace(like, weights=found.weights)
    towers = {name: _absolute(getattr(given, name)) for name in TOWERS if getattr(given, name)}
    if unknown := towers.keys() - {field.name for field in fields(found.method)}:
        raise ConfigError(f"--{unknown.pop().replace('_', '-')}: {found.method.name} has no such setting; leave it out")
    return replace(found, method=located(override(replace(found.method, **towers), given.set), Path()))


def _absolute(name: str) -> str:
    """A folder's absolute path; any other name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _parser() -> Parser:
    parser = Parser(usage=f"{command_name()} import FILE FOLDER [option ...]", description=__doc__)
    add = parser.add_argument
    add("verb", choices=("import",), help="read an official file (owseg export --to official writes one)")
    add("source", metavar="FILE", help="the official file")
    add("target", metavar="FOLDER", help="the trained folder to write; nothing may be there")
    add("--method", default="", help="whose checkpoint it is (default: as its names say)")
    add(
        "--like",
        default="",
        metavar="TRAINED",
        help="a run or trained folder of the method: settings, towers and sizes are its",
    )
    add("--encoder-model", default="", help="the CLIP under it, as encoder.model (default: ViT-B-16)")
    add("--encoder-weights", default="", help="the CLIP's weights, as encoder.pretrained (default: openai)")
    add("--image-tower", default="", help="of an OVSegmentor or Talk2DINO: its timm ViT (default: the released ViT-B)")
    add("--text-tower", default="", help="of an OVSegmentor: transformers id or folder (default: BERT-base)")
    setting = "a setting of the method that decides what the file fits, such as image_size.width=96; may be given again"
    add("--set", default=[], action="append", metavar="KEY=VALUE", help=setting)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
