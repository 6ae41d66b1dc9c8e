"""Photos or videos and labels in, segmented ones out: each pixel gets the label that fits it best, or none.

For photo.jpg three files are written: photo.overlay.png (the labels' colours on the photo, with a legend), photo.mask.png (an
indexed picture of the photo's size: 0 = nothing, i = label i) and photo.json (labels, colours, shares of pixels, and what made
them). Photos are turned as their EXIF orientation says, and so are the masks. For clip.mov, clip.overlay.mp4 and clip.json.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owseg import InputError
from owseg.listing import counted
from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError
from pipelines.app.models import add_inference_options, load_model, model_line, settings_of, with_inference_options
from pipelines.app.outcome import DONE, USER_MISTAKE
from pipelines.app.registered import checkpoint_here

if TYPE_CHECKING:  # torch takes seconds to load, and --help has no need of it
    from owseg.checkpoint import Checkpoint
    from owseg.predict import Model
    from pipelines.segmenting.video import VideoOptions

LOWER = "lower it with --set background_threshold=..., or give every pixel a label with --no-background"


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs: 2 also where some of the inputs could not be read."""
    unreadable: list[Path] = []
    code = run_parsed(_parser(), argv, lambda arguments: unreadable.extend(segment(arguments)))
    return code or (USER_MISTAKE if unreadable else DONE)


def segment(arguments: argparse.Namespace) -> list[Path]:
    """Segment every photo and video; one that cannot be read is reported in a line of its own, and returned."""
    from owseg.predict import clean_labels
    from owseg.videos import is_video
    from pipelines.segmenting.inputs import PHOTOS, files_in, find_inputs, read_labels
    from pipelines.segmenting.video import VideoOptions, segment_video

    labels = clean_labels(read_labels(arguments.labels))
    options = VideoOptions(
        background=arguments.background, every=arguments.every, smooth=arguments.smooth, masks=arguments.masks
    )
    out = _writable(Path(arguments.out))
    inputs, notes = find_inputs(map(Path, arguments.images))
    for note in notes:
        _print(f"note: {note}")
    checkpoint = _checkpoint(arguments)
    print(f"model: {model_line(checkpoint)}", flush=True)
    model = load_model(checkpoint, arguments.device, arguments.set)
    made_by = {"background": arguments.background, **settings_of(checkpoint)}
    unreadable = []
    for number, (path, name) in enumerate(inputs, 1):
        try:
            if path.is_dir():
                others = files_in(path)[1]
                but = f", but {counted(others, path)}" if others else ""
                raise InputError(f"{path}: holds no images ({', '.join(PHOTOS)}){but}")
            if is_video(path):
                told = segment_video(model, path, out / name, labels, options, made_by)
            else:
                told = _segment_photo(model, path, out / name, labels, options, made_by)
        except ConfigError:
            raise
        except InputError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            unreadable.append(path)
            continue
        _print(f"[{number}/{len(inputs)}] {path}: {told}")
    return unreadable


def _segment_photo(
    model: "Model", photo: Path, stem: Path, labels: tuple[str, ...], options: "VideoOptions", made_by: dict[str, Any]
) -> str:
    """Write a photo's results; returns what is said of them."""
    from pipelines.segmenting.results import shares_line, write_photo

    result = model.segment(photo, labels, background=options.background)
    overlay = write_photo(result, stem, {"image": photo.name, **made_by})
    height, width = result.labels.shape
    why = result.why_nothing()
    nothing = f"\nnothing found in {photo.name}: {why}; {LOWER}" if why else ""
    return f"{width} x {height}, {shares_line(result.shares(), result.nothing)} → {overlay}{nothing}"


def _print(line: str) -> None:
    print(line.encode(errors="backslashreplace").decode(), flush=True)  # a file's name need not be valid text


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".segment.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written ({error.strerror}); choose another folder") from None
    return folder


def _checkpoint(arguments: argparse.Namespace) -> "Checkpoint":
    """The checkpoint that the options name, with the settings and sizes that they change."""
    from owseg.checkpoint import TRAINING_FREE, find_checkpoint

    found = find_checkpoint(
        checkpoint_here(arguments.checkpoint) or arguments.method or TRAINING_FREE,
        arguments.method,
        encoder_model=arguments.encoder_model,
        encoder_weights=arguments.encoder_weights,
    )
    return with_inference_options(found, arguments)


def _parser() -> Parser:
    usage = f"{command_name()} INPUT... --labels LABELS [--checkpoint PATH] [--out FOLDER] [option ...]"
    parser = Parser(usage=usage, description=__doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="INPUT", help="a photo, a video, or a folder of them")
    add("--labels", required=True, help='what to look for, any words: "cat, wooden table, sky"; or @FILE with one a line')
    add(
        "--checkpoint",
        default="",
        metavar="PATH",
        help="a folder of a run's train/, the run's folder, models:/NAME@champion of MLflow's registry, or an official .pth "
        "(TCL's, OVSegmentor's or Talk2DINO's)",
    )
    add(
        "--method",
        default="",
        help="a training-free mode (naclip, maskclip, ...), or one of the methods that a run trained; "
        "without it and without --checkpoint: naclip on OpenAI's CLIP, which is downloaded",
    )
    add("--out", default="segmented", metavar="FOLDER", help="where results go (default: %(default)s)")
    add(
        "--no-background",
        dest="background",
        action="store_false",
        help="give every pixel a label; by default those that no label fits well enough become nothing",
    )
    add("--every", type=int, default=1, metavar="N", help="of a video, segment each N-th frame; those between keep its labels")
    add(
        "--smooth",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of a video, the share of the scores before in each frame's, 0 (none) up to 1: steadier, and slower to follow",
    )
    add("--masks", action="store_true", help="of a video, write the mask of each segmented frame, too")
    add_inference_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
