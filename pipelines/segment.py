"""Photos and labels in, segmented photos out: each pixel gets the label that fits it best, or none.

For photo.jpg three files are written: photo.overlay.png (the labels' colours on the photo, with a legend), photo.mask.png (an
indexed picture of the photo's size: 0 = nothing, i = label i) and photo.json (labels, colours, shares of pixels, and what made
them). Photos are turned as their EXIF orientation says, and so are the masks.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owseg import InputError
from owseg.listing import counted, files_below
from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError, override
from pipelines.app.outcome import DONE, USER_MISTAKE

if TYPE_CHECKING:  # torch takes seconds to load, and --help has no need of it
    from owseg.checkpoint import Checkpoint
    from owseg.predict import Model, Segmentation

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".avif")
"""What is taken for a photo in a folder; a file that is named itself may have any."""
LOWER = "lower it with --set background_threshold=..., or give every pixel a label with --no-background"
OVERLAY, MASK = ".overlay.png", ".mask.png"
PIXELS = ("short_side", "max_long_side", "window", "stride")
VIEW = (*PIXELS, "grid_scale", "refine")
OPTION_OF = {
    "encoder.pretrained": "--encoder-weights",
    "encoder.model": "--encoder-model",
    "set encoder.quick_gelu=true": "give --encoder-model ViT-B-16-quickgelu or its like",
}
"""Settings that errors speak of, by the options of this verb; a method's own are given with --set."""
MAX_LISTED = 5
"""Labels in an image's line; its JSON has all of them."""


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs: 2 also where some of the images could not be read."""
    unreadable: list[Path] = []
    code = run_parsed(_parser(), argv, lambda arguments: unreadable.extend(segment(arguments)))
    return code or (USER_MISTAKE if unreadable else DONE)


def segment(arguments: argparse.Namespace) -> list[Path]:
    """Segment every image; one that cannot be read is reported in a line of its own, and returned."""
    from owseg.predict import clean_labels

    labels = clean_labels(read_labels(arguments.labels))
    out = _writable(Path(arguments.out))
    photos, notes = find_photos(map(Path, arguments.images))
    for note in notes:
        _print(f"note: {note}")
    checkpoint = _checkpoint(arguments)
    print(f"model: {_name(checkpoint)}", flush=True)
    model = _load(checkpoint, arguments.device)
    made_by = {"background": arguments.background, **_settings(checkpoint)}
    unreadable = []
    for number, (photo, name) in enumerate(photos, 1):
        try:
            if photo.is_dir():
                others = _files_in(photo)[1]
                but = f", but {counted(others, photo)}" if others else ""
                raise InputError(f"{photo}: holds no images ({', '.join(SUFFIXES)}){but}")
            result = model.segment(photo, labels, background=arguments.background)
        except InputError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            unreadable.append(photo)
            continue
        overlay = write_result(result, out / name, {"image": photo.name, **made_by})
        _print(f"[{number}/{len(photos)}] {photo}: {_told(result)} → {overlay}")
        if why := result.why_nothing():
            _print(f"nothing found in {photo.name}: {why}; {LOWER}")
    return unreadable


def _print(line: str) -> None:
    print(line.encode(errors="backslashreplace").decode(), flush=True)  # a file's name need not be valid text


def read_labels(text: str) -> list[str]:
    """The labels of "cat, wooden table, sky", or of "@FILE" with one a line (which may hold commas)."""
    if not text.startswith("@"):
        return text.split(",") if text.strip() else []
    try:
        return [line for line in Path(text[1:]).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels: {text[1:]} cannot be read ({error})") from None


def find_photos(inputs: Iterable[Path]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Each photo once with the name of its results, and a line on what of each folder is not looked at.

    The name is that of the file, below a folder with the way to it. A folder without photos is listed itself. Links to folders
    are followed, to each folder once. What this verb wrote is not taken for a photo; names that would fall together are
    numbered.
    """
    seen: set[str] = set()
    names: set[str] = set()
    photos: list[tuple[Path, str]] = []
    notes: list[str] = []
    for given in inputs:
        inside, others = _files_in(given) if given.is_dir() else ([], [])
        if inside and others:
            notes.append(f"{given}: {counted(others, given)} of other kinds not looked at; photos are {', '.join(SUFFIXES)}")
        for path in inside or [given]:
            real = os.path.realpath(path)  # of a link to itself, too, which is missed when it is read
            if real in seen:
                continue
            seen.add(real)
            name = stem = path.relative_to(given).with_suffix("").as_posix() if inside else path.stem
            number = 1
            while name.casefold() in names:
                number += 1
                name = f"{stem}-{number}"
            names.add(name.casefold())
            photos.append((path, name))
    return photos, notes


def _files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photos below a folder, and its files of other kinds."""
    files = sorted(path for path in files_below(folder) if not _is_result(path))
    photos = [path for path in files if path.suffix.lower() in SUFFIXES]
    return photos, [path for path in files if path.suffix.lower() not in SUFFIXES]


def _is_result(path: Path) -> bool:
    """Whether this verb wrote a file."""
    overlay = path.with_name(f"{path.name.removesuffix('.json')}{OVERLAY}")
    return path.name.endswith((OVERLAY, MASK)) or (path.suffix == ".json" and overlay.is_file())


def write_result(result: "Segmentation", stem: Path, made_by: dict[str, Any]) -> Path:
    """Write overlay, mask and JSON; returns the overlay's path. Raises ConfigError where they cannot be written."""
    height, width = result.labels.shape
    shares = result.shares()
    labels = [
        {"index": index, "label": name, "colour": colour.tolist(), "share": round(share, 6)}
        for index, ((name, share), colour) in enumerate(zip(shares.items(), result.colours, strict=True), 1)
    ]
    told = {**made_by, "width": width, "height": height, "labels": labels, "nothing": round(result.nothing, 6)}
    told |= {"threshold": result.threshold, "best": {"label": result.best.label, "score": round(result.best.score, 6)}}
    overlay = stem.with_name(stem.name + OVERLAY)
    text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        result.mask().save(stem.with_name(stem.name + MASK))
        stem.with_name(f"{stem.name}.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        result.overlay().save(overlay)
    except OSError as error:
        raise ConfigError(f"--out: {stem} cannot be written ({error.strerror or error})") from None
    return overlay


def _told(result: "Segmentation") -> str:
    from owseg.predict import percent

    height, width = result.labels.shape
    shares = {name: share for name, share in result.shares().items() if share > 0}
    largest = sorted(shares, key=lambda name: -shares[name])[:MAX_LISTED]
    others = [f"{len(shares) - MAX_LISTED} more"] if len(shares) > MAX_LISTED else []
    nothing = [f"nothing {percent(result.nothing)}"] if result.nothing else []
    return ", ".join([f"{width} x {height}", *(f"{name} {percent(shares[name])}" for name in largest), *others, *nothing])


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
        arguments.checkpoint or arguments.method or TRAINING_FREE,
        arguments.method,
        encoder_model=arguments.encoder_model,
        encoder_weights=arguments.encoder_weights,
    )
    sizes = {name: value for name in VIEW if (value := getattr(arguments, name)) is not None}
    return replace(found, method=override(found.method, arguments.set), view=replace(found.view, **sizes))


def _load(checkpoint: "Checkpoint", device: str) -> "Model":
    from owseg.predict import Model

    try:
        return Model(checkpoint, device)
    except InputError as error:
        message = str(error)
        for setting, option in OPTION_OF.items():
            message = message.replace(setting, option)
        raise ConfigError(re.sub(r"\bmethod_settings\.\w+\.", "--set ", message)) from error


def _settings(checkpoint: "Checkpoint") -> dict[str, Any]:
    """What decides the masks, with the SHA-256 of the weights, and without a path of this machine."""
    from owseg.fields import training_only_settings

    settings = checkpoint.describe()
    left_out = training_only_settings(checkpoint.method)
    settings["method"] = {key: value for key, value in settings["method"].items() if key not in left_out}
    settings.get("encoder", {}).pop("architecture", None)
    return settings


def _name(checkpoint: "Checkpoint") -> str:
    """The model in a few words."""
    method, encoder, view = checkpoint.method, checkpoint.encoder, checkpoint.view
    name = getattr(method, "mode", method.name)
    source = f"from {checkpoint.weights}" if checkpoint.weights else f"on {encoder.model} {encoder.pretrained}"
    return f"{name} {source}, short side {view.short_side}, window {view.window}, stride {view.stride}"


def _parser() -> Parser:
    usage = f"{command_name()} IMAGE... --labels LABELS [--checkpoint PATH] [--out FOLDER] [option ...]"
    parser = Parser(usage=usage, description=__doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a photo, or a folder of photos")
    add("--labels", required=True, help='what to look for, any words: "cat, wooden table, sky"; or @FILE with one a line')
    add(
        "--checkpoint",
        default="",
        metavar="PATH",
        help="a folder of a run's train/, the run's folder, or an official .pth (TCL's or OVSegmentor's)",
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
    add("--encoder-model", default="", metavar="NAME", help="CLIP of tcl.pth and of training-free modes (default: ViT-B-16)")
    add(
        "--encoder-weights",
        default="",
        metavar="FILE|TAG",
        help="its weights (default: openai; so is a file without --encoder-model); or where those of a checkpoint lie by now",
    )
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
