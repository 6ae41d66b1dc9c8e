"""Which model a verb works with: the options that name it, and the model that they mean."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from owseg import InputError
from pipelines.app.arguments import Parser
from pipelines.app.config import ConfigError, override

if TYPE_CHECKING:  # torch takes seconds to load, and --help has no need of it
    from owseg.checkpoint import Checkpoint
    from owseg.predict import Model

PIXELS = ("short_side", "max_long_side", "window", "stride")
VIEW = (*PIXELS, "grid_scale", "refine")
OPTION_OF = {
    "encoder.pretrained": "--encoder-weights",
    "encoder.model": "--encoder-model",
    "set encoder.quick_gelu=true": "give --encoder-model ViT-B-16-quickgelu or its like",
}
"""Settings that errors speak of, by the options of these verbs; a method's own are given with --set."""
_OWN_SETTING = re.compile(r"\bmethod_settings\.\w+\.(\w+)")


def add_encoder_options(parser: Parser) -> None:
    """Which CLIP is meant, where a checkpoint does not say it."""
    add = parser.add_argument
    add("--encoder-model", default="", metavar="NAME", help="CLIP of tcl.pth and of training-free modes (default: ViT-B-16)")
    add(
        "--encoder-weights",
        default="",
        metavar="FILE|TAG",
        help="its weights (default: openai; so is a file without --encoder-model); or where those of a checkpoint lie by now",
    )


def add_inference_options(parser: Parser) -> None:
    """How a model reads photos, and where it runs."""
    add = parser.add_argument
    add(
        "--set",
        default=[],
        action="append",
        metavar="KEY=VALUE",
        help="a setting of the method, such as background_threshold=0.3 or pamr=true; may be given again for another",
    )
    for name in PIXELS:
        add(f"--{name.replace('_', '-')}", type=int, metavar="PIXELS", help="instead of what the checkpoint was made for")
    add("--grid-scale", type=float, metavar="FACTOR", help="show windows enlarged, 1 to 4: a finer grid of tokens, and slower")
    add("--refine", choices=("none", "pamr"), help="draw scores to the photo's edges (pamr); slow with many labels")
    add_encoder_options(parser)
    add_device_option(parser)


def add_device_option(parser: Parser) -> None:
    """Where models run."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def with_inference_options(checkpoint: "Checkpoint", arguments: argparse.Namespace) -> "Checkpoint":
    """A checkpoint with the settings and sizes that the options of `add_inference_options` change."""
    sizes = {name: value for name in VIEW if (value := getattr(arguments, name)) is not None}
    method = override(checkpoint.method, arguments.set) if arguments.set else checkpoint.method
    return replace(checkpoint, method=method, view=replace(checkpoint.view, **sizes))


def load_model(checkpoint: "Checkpoint", device: str, given: Sequence[str] | None = None) -> "Model":
    """The model, ready to segment. Raises ConfigError that speaks of options, or of the checkpoint's file, where it cannot be.

    given: the settings of --set; None where a verb has no such option.
    """
    from owseg.predict import Model

    with speaking_of_options(checkpoint, given):
        return Model(checkpoint, device)


@contextmanager
def speaking_of_options(checkpoint: "Checkpoint", given: Sequence[str] | None = None) -> Iterator[None]:
    """Inside, what is wrong with a setting is said of the option that gave it, else of the checkpoint's `model.json`."""
    from owseg.checkpoint import MODEL

    try:
        yield
    except InputError as error:
        message, file = str(error), checkpoint.weights and checkpoint.weights.with_name(MODEL)
        begun = _OWN_SETTING.match(message)
        if begun and file and file.is_file() and not any(re.split(r"[.=]", text)[0] == begun[1] for text in given or ()):
            another = "" if given is None else f"; --set {begun[1]}=... gives another"
            message = f"{file}: {begun[1]}{message[begun.end() :]}{another}"
        for setting, option in OPTION_OF.items():
            message = message.replace(setting, option)
        raise ConfigError(_OWN_SETTING.sub(r"--set \1" if given is not None else r"\1", message)) from error


def short_name(checkpoint: "Checkpoint") -> str:
    """What a model's method is called among a run's `methods`."""
    from owseg.methods import METHODS

    mode = getattr(checkpoint.method, "mode", None)
    same = (name for name, method in METHODS.items() if mode and getattr(method, "mode", None) == mode)
    return next(same, checkpoint.method.name)


def model_line(checkpoint: "Checkpoint") -> str:
    """The model in a line: method, source and sizes."""
    encoder, view = checkpoint.encoder, checkpoint.view
    source = f"from {checkpoint.weights}" if checkpoint.weights else f"on {encoder.model} {encoder.pretrained}"
    return f"{short_name(checkpoint)} {source}, short side {view.short_side}, window {view.window}, stride {view.stride}"


def settings_of(checkpoint: "Checkpoint") -> dict[str, Any]:
    """What decides the masks, with the SHA-256 of the weights, and without a path of this machine."""
    from owseg.fields import training_only_settings

    settings = checkpoint.describe()
    left_out = training_only_settings(checkpoint.method)
    settings["method"] = {key: value for key, value in settings["method"].items() if key not in left_out}
    settings.get("encoder", {}).pop("architecture", None)
    return settings
