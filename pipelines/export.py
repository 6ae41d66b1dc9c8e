"""A trained model as others read it: a folder with a model card, or the authors' own file.

    owseg export RUN|CHECKPOINT --to hf-folder OUT     towers as transformers and timm load them, tensors as safetensors
    owseg export RUN|CHECKPOINT --to open_clip OUT     the CLIP as open_clip loads it by local-dir:
    owseg export RUN|CHECKPOINT --to official tcl.pth  the authors' form of a TCL, OVSegmentor or Talk2DINO (owseg official
                                                       reads such)

What was written is loaded by the library that it is for, and its embeddings are compared, before OUT appears. README.md in it
says what loads where, and where the model comes from.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError
from pipelines.app.models import add_encoder_options, short_name, speaking_of_options
from pipelines.app.new_output import free_place, refuse_taken
from pipelines.app.registered import checkpoint_here

if TYPE_CHECKING:  # torch takes seconds to load, and --help has no need of it
    from owseg.checkpoint import Checkpoint

LIBRARIES = {"hf-folder": "transformers", "open_clip": "open_clip", "official": ""}
"""The forms, and the hub's name of the library that loads each."""
OWN = "owseg"
"""The folder in an export that `segment --checkpoint` takes: all that other libraries have no place for is there."""


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    return run_parsed(_parser(), argv, run)


def run(given: argparse.Namespace) -> None:
    """Write the export beside OUT, and give it that name when it is whole."""
    from owseg.checkpoint import MODEL, find_checkpoint
    from pipelines.exporting.card import write_card
    from pipelines.exporting.origin import origin_of

    out = free_place(given.out, "OUT")
    card = out.with_name(f"{out.name}.md")
    if given.to == "official":
        refuse_taken(card)
    encoder = {"encoder_model": given.encoder_model, "encoder_weights": given.encoder_weights}
    source = checkpoint_here(given.source)
    found = find_checkpoint(source, given.method, **encoder)
    with speaking_of_options(found):
        method = _loaded(found, given.to)
    temporary = out.absolute().with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        loads = _written(given.to, found, method, temporary)
        write_card(temporary, origin_of(found, Path(source)), loads, LIBRARIES[given.to])
        if given.to == "official":
            (temporary / "README.md").rename(card)
            (temporary / "model.pth").rename(out)
        else:
            temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"export: {short_name(found)} → {out}")
    for part, loader in loads.items():
        print(f"  {part}: {loader}")
    if given.to == "official" and found.weights and found.weights.with_name(MODEL).is_file():
        like = shlex.join(["import", str(out), "FOLDER", "--like", str(found.weights.parent)])
        print(f"  the way back: owseg official {like}")


def _loaded(found: "Checkpoint", form: str) -> Any:
    """The method with its weights; an official checkpoint has no frozen ones, so none are loaded for it."""
    from owseg.encoders import build_encoder
    from owseg.method_config import TrainableConfig
    from owseg.published import layout_of, load_trained
    from owseg.segmenter import build_trained, load_segmenter

    config = found.method
    if form != "official":
        return load_segmenter(config, found.encoder, found.weights)
    if not isinstance(config, TrainableConfig) or found.weights is None:
        raise ConfigError(f"--to: {short_name(found)} is not trained, so there is no official checkpoint of it")
    method = build_trained(config, lambda: build_encoder(found.encoder))
    layout_of(method)
    load_trained(method, config.phases, found.weights)
    return method


def _written(form: str, found: "Checkpoint", method: Any, folder: Path) -> dict[str, str]:
    """Write the export into a folder; returns what loads each part of it."""
    import torch

    from owseg.encoders import Encoder, architecture
    from owseg.exporting.folders import save_clip, save_open_clip
    from owseg.published import export_official

    if form == "official":
        torch.save(export_official(method), folder / "model.pth")
        return {"model.pth": "the authors' repository; owseg official import FILE FOLDER --like TRAINED"}
    clip = Encoder(method.clip, method.tokenize) if hasattr(method, "clip") else None
    loads: dict[str, str] = {}
    weights: Path | None = None
    if form == "open_clip":
        if clip is None:
            raise ConfigError(f"--to: {short_name(found)} has no CLIP that open_clip could load; give --to hf-folder")
        weights = save_open_clip(clip, architecture(found.encoder), found.normalisation, folder)
        loads["."] = "open_clip.create_model_from_pretrained('local-dir:FOLDER')"
    elif clip is not None:
        save_clip(clip, architecture(found.encoder), found.normalisation, folder)
        loads["."] = "transformers.CLIPModel.from_pretrained(FOLDER)"
    if form == "hf-folder" and found.weights:
        loads |= method.save_towers(folder, found.normalisation)
    if found.weights and not found.method.tower:
        _write_own(found, method, folder, weights)
        loads[OWN] = "owseg segment --checkpoint FOLDER/owseg; its .safetensors are read by safetensors alone, too"
    return loads


def _write_own(found: "Checkpoint", method: Any, folder: Path, encoder_weights: Path | None) -> None:
    """Write the whole model in this project's form, below the export's folder and without a path out of it."""
    from safetensors.torch import save_file

    from owseg.checkpoint import write_model
    from owseg.encoders import load_encoder
    from owseg.fields import path_settings, training_only_settings
    from owseg.fit import WEIGHTS, learned_state
    from owseg.methods.ovsegmentor import CLIP

    own = folder / OWN
    own.mkdir()
    config: Any = found.method
    left_out = dict.fromkeys(path_settings(config) & training_only_settings(config), "")
    if (
        (folder / "text_tower").is_dir()
        and getattr(config, "text_tower", CLIP) != CLIP
        and "text_tower" in path_settings(config)
    ):
        left_out["text_tower"] = str((folder / "text_tower").resolve())
    for name in path_settings(config) - left_out.keys():
        file = Path(getattr(config, name))
        if file.is_file():
            left_out[name] = str(Path(shutil.copyfile(file, own / file.name)).resolve())
    save_file({name: tensor.clone() for name, tensor in learned_state(method, config.phases).items()}, own / WEIGHTS)
    encoder = found.encoder
    if config.uses_clip:
        if encoder_weights is None:
            encoder_weights = own / "encoder.safetensors"
            clip = load_encoder(encoder).clip
            save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, encoder_weights)
        encoder = replace(encoder, pretrained=str(encoder_weights.resolve()))
    write_model(replace(found, method=replace(config, **left_out), encoder=encoder, weights=(own / WEIGHTS).resolve()))


def _parser() -> Parser:
    parser = Parser(usage=f"{command_name()} RUN|CHECKPOINT --to {'|'.join(LIBRARIES)} OUT [option ...]", description=__doc__)
    add = parser.add_argument
    add("source", metavar="RUN|CHECKPOINT", help="a run's folder, or what segment takes as --checkpoint")
    add("out", metavar="OUT", help="the folder to write, or the file of --to official and OUT.md; nothing may be there")
    add("--to", required=True, choices=[*LIBRARIES], help="the form that is written")
    add("--method", default="", help="one of the methods that a run trained, or a training-free mode: its CLIP alone")
    add_encoder_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
