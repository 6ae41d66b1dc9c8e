"""What a checkpoint says of itself, so that its folder alone is enough to segment with: `model.json` beside the weights.

It holds the method and its settings, the encoder with its resolved architecture, where the encoder's weights lie from there,
the view that the run evaluates with, and the SHA-256 of all weights. It holds no absolute path: a run's folder may move.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from owseg import InputError
from owseg.encoders import EncoderConfig, encoder_dict
from owseg.evaluation.protocols import EvaluateConfig, View, view_of
from owseg.fields import former_values, path_settings, training_only_settings
from owseg.fit import WEIGHTS
from owseg.frozen_tower import TowerSettings
from owseg.listing import is_leftover
from owseg.method_config import MethodConfig
from owseg.methods import METHODS, PRETRAININGS, TRAINABLE
from owseg.methods.clip import ClipConfig
from owseg.methods.dino import DinoConfig
from owseg.methods.ovsegmentor import CLIP
from owseg.methods.tcl import TclConfig
from owseg.normalisation import Normalisation
from owseg.published import SUFFIXES as OFFICIAL_SUFFIXES
from owseg.published import read_official, recognise

MODEL = "model.json"
TRAINING_FREE = "naclip"
Method = TypeVar("Method", bound=MethodConfig)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A method, the CLIP that it may be built around, how images are shown to it, and its trained weights if it has any."""

    method: MethodConfig
    encoder: EncoderConfig = EncoderConfig()
    normalisation: Normalisation = Normalisation()
    view: View = view_of(EvaluateConfig(), "voc21")
    weights: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.method, TclConfig) and self.method.pamr and self.view.refine != "none":
            raise InputError(
                f"pamr: TCL refines its masks already, and refine={self.view.refine} would again; set one of the two"
            )

    def files(self) -> dict[str, str]:
        """SHA-256 of every file of weights, by its path from the weights' folder (bare names where the method has none)."""
        below = [self.weights, *([Path(self.encoder.pretrained)] if self.method.uses_clip else [])]
        read = sorted(path_settings(self.method) - training_only_settings(self.method))
        below += [Path(getattr(self.method, name)) for name in read]
        paths = [path for path in below if path is not None and path.is_file()]
        return {self._relative(path): sha256(path) for path in paths}

    def describe(self) -> dict[str, Any]:
        """All that decides its masks, without a path of this machine."""
        method = asdict(self.method)
        given = {name: Path(method[name]) for name in path_settings(self.method)}
        method |= {name: self._relative(path) for name, path in given.items() if path.is_absolute()}
        found = {
            "method": method,
            "normalisation": asdict(self.normalisation),
            "view": asdict(self.view),
            "sha256": self.files(),
        }
        return found | {"encoder": self._encoder()} if self.method.uses_clip else found

    def _encoder(self) -> dict[str, Any]:
        encoder, pretrained = encoder_dict(self.encoder), Path(self.encoder.pretrained)
        if self.encoder.model.endswith(".json"):
            encoder["model"] = Path(self.encoder.model).name
        if pretrained.is_file() or pretrained.is_absolute():
            encoder["pretrained"] = self._relative(pretrained)
        return encoder

    def _relative(self, path: Path) -> str:
        if self.weights is None:
            return path.name
        return Path(os.path.relpath(path.resolve(), self.weights.parent.resolve())).as_posix()


def write_model(checkpoint: Checkpoint) -> Path:
    """Write `model.json` beside the weights, the same bytes for the same checkpoint."""
    if checkpoint.weights is None:
        raise ValueError("a checkpoint without weights has no folder")
    path = checkpoint.weights.with_name(MODEL)
    temporary = path.with_name(f".{MODEL}.tmp")
    temporary.write_text(json.dumps(checkpoint.describe(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_model(folder: Path, encoder_weights: str = "") -> Checkpoint:
    """The checkpoint that `model.json` in `folder` describes; `encoder_weights` says where the encoder's lie by now.

    Raises InputError where the file is not what `write_model` writes, or weights are missing or not those that it was
    written for.
    """
    file = folder / MODEL
    try:
        model = json.loads(file.read_text(encoding="utf-8"))
        trained = type(TRAINABLE[model["method"]["name"]])
        method = located(_rebuild(trained, model["method"]), folder)
        recorded = {key: value for key, value in model.get("encoder", {}).items() if key != "architecture"}
        older = {key: recorded.pop(key) for key in ("mean", "std") if key in recorded}  # before it had a section of its own
        normalisation = _rebuild(Normalisation, model.get("normalisation", older))
        encoder = _rebuild(EncoderConfig, recorded)
        view = _rebuild(View, model["view"])
        digests = {str(name): str(digest) for name, digest in model["sha256"].items()}
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no {MODEL}; a run's train stage writes it beside the weights") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not what the train stage writes, or of another version ({error!r})") from error
    places = {name: folder / name for name in digests}
    if encoder.pretrained in digests:
        places[encoder.pretrained] = Path(encoder_weights or places[encoder.pretrained])
    for name, digest in digests.items():
        _check_weights(places[name], digest, file)
    pretrained = str(places.get(encoder.pretrained, encoder_weights or encoder.pretrained))
    # Weights in a file fit the recorded architecture; open_clip finds those of a tag by the model's name.
    model_of_weights = str(file) if Path(pretrained).is_file() else encoder.model
    encoder = replace(encoder, model=model_of_weights, pretrained=pretrained)
    return Checkpoint(method=method, encoder=encoder, normalisation=normalisation, view=view, weights=folder / WEIGHTS)


def find_checkpoint(
    checkpoint: str | Path = TRAINING_FREE, method: str = "", *, encoder_model: str = "", encoder_weights: str = ""
) -> Checkpoint:
    """What a user means by `checkpoint`: a folder with `model.json`, a run's folder, an official .pth, or a training-free mode.

    `method` picks one of several that a run trained, or a training-free mode to be run on the checkpoint's encoder. The encoder
    can be named where the checkpoint does not say (`tcl.pth`, training-free modes: by default OpenAI's ViT-B/16); for the
    others `encoder_weights` says where its weights lie now. Raises InputError that says what there is to choose from.
    """
    path, modes = Path(checkpoint), training_free()
    encoder = _named_encoder(encoder_model, encoder_weights)
    if str(checkpoint) in modes:
        found = Checkpoint(method=modes[str(checkpoint)], encoder=encoder)
    elif (checkpoint != "" and path.is_dir()) or (path.is_file() and path.suffix not in OFFICIAL_SUFFIXES):
        if encoder_model:
            raise InputError(f"{checkpoint}: {MODEL} says which encoder it is; give its weights alone")
        if path.is_file() and not path.with_name(MODEL).is_file():
            raise InputError(f"{checkpoint}: there is no {MODEL} beside it to say what it is; give a folder that train wrote")
        found = read_model(_folder_in(path, method) if path.is_dir() else path.parent, encoder_weights)
    elif path.is_file():
        found = Checkpoint(method=_official_method(path), encoder=encoder, weights=path)
    else:
        raise InputError(
            f"{checkpoint or repr('')}: no such checkpoint; give a folder with {MODEL}, an official .pth, or one of "
            f"{', '.join(modes)}"
        )
    if method in modes:
        if not found.method.uses_clip:
            raise InputError(f"{method}: {checkpoint} has no CLIP that it could read; give the method alone, and its encoder")
        return replace(found, method=_with_tower_beside(modes[method], found.weights), weights=None)
    if method and method != found.method.name:
        raise InputError(
            f"{method}: {checkpoint} is a checkpoint of {found.method.name}; besides it, there are {', '.join(modes)}"
        )
    return found


def _with_tower_beside(mode: MethodConfig, weights: Path | None) -> MethodConfig:
    """A training-free mode with the image tower that lies beside the weights of a run, where the mode is built around one."""
    folder = weights.resolve().parent.parent / DinoConfig().name if weights else None
    if folder is None or not isinstance(mode, TowerSettings) or not (folder / MODEL).is_file():
        return mode
    dino = read_model(folder).method
    assert isinstance(dino, DinoConfig)
    return mode.with_tower(dino.image_tower, dino.image_size, folder / dino.tower.file)


def _official_method(path: Path) -> MethodConfig:
    """The method whose official checkpoint a file is, with the settings that follow from it."""
    name, settings = recognise(read_official(path), path)
    method = METHODS[name]
    changes: dict[str, Any] = dict(settings)
    return replace(method, **changes)


def located(method: Method, folder: Path) -> Method:
    """A method whose files and folders, named from `folder`, have absolute paths; what is no path there stays as it is."""
    named = {name: value for name in path_settings(method) if (value := getattr(method, name)) and value != CLIP}
    paths = {name: folder / Path(value).expanduser() for name, value in named.items()}
    found: dict[str, Any] = {name: str(path.resolve()) for name, path in paths.items() if path.exists()}
    return replace(method, **found)


def files_at(name: str) -> list[Path]:
    """The file that a located setting names, or those in the folder that it names; none for other names."""
    path = Path(name)
    found = [path] if path.is_file() else sorted(file for file in path.glob("*") if not is_leftover(file.name))
    return [file for file in found if file.is_file()] if path.is_absolute() else []


def _named_encoder(model: str, weights: str) -> EncoderConfig:
    """OpenAI's ViT-B/16 where nothing else is named; so a file without a model's name is taken for OpenAI's, with QuickGELU."""
    default = EncoderConfig()
    openai = True if not model and Path(weights).is_file() else None
    return replace(default, model=model or default.model, pretrained=weights or default.pretrained, quick_gelu=openai)


def training_free() -> dict[str, MethodConfig]:
    """The methods that need no weights of their own, by name."""
    return {name: config for name, config in METHODS.items() if name not in TRAINABLE}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trained_in(folder: Path) -> dict[str, Path]:
    """The folders of what a run trained, by method; none where it is no run's folder."""
    return {file.parent.name: file.parent for file in sorted(folder.glob(f"train/*/{MODEL}"))}


def _folder_in(folder: Path, method: str) -> Path:
    """`folder` itself where it holds a checkpoint, or that of one method where it is a run's."""
    if (folder / MODEL).is_file():
        return folder
    trained = trained_in(folder)
    segmenters = [name for name in trained if name not in PRETRAININGS]
    if method in training_free() and trained:
        # All that use a CLIP use the run's one; these two always do.
        return next(trained[name] for name in (ClipConfig().name, TclConfig().name, *segmenters, *trained) if name in trained)
    name = method or (segmenters[0] if len(segmenters) == 1 else "")
    if name in trained:
        return trained[name]
    if trained:
        choice = ", ".join([*segmenters, *training_free()])
        raise InputError(f"{folder}: which method of this run? name one of {choice}")
    raise InputError(f"{folder}: holds no {MODEL}; give a folder that the train stage wrote, or a run's")


def check_digest(weights: Path) -> None:
    """Raise InputError where the `model.json` beside trained weights was written for others."""
    file = weights.with_name(MODEL)
    if not file.is_file():
        return
    try:
        digest = json.loads(file.read_text(encoding="utf-8"))["sha256"].get(weights.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not what the train stage writes ({error!r})") from error
    if digest is not None:
        _check_weights(weights, digest, file)


def _check_weights(path: Path, digest: str, file: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"{path} is missing, which {file} names; put it back, or give the encoder's weights (--encoder-weights)"
        )
    if sha256(path) != digest:
        raise InputError(f"{path}: not the weights that {file} was written for (another SHA-256)")


def _rebuild(kind: Any, value: Any) -> Any:
    """What `asdict` and JSON have made of settings, as it was."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints, renamed = get_type_hints(kind), former_values(kind)
        given = {name: renamed[name].get(item, item) if name in renamed else item for name, item in value.items()}
        return kind(**{name: _rebuild(hints[name], item) for name, item in given.items()})
    if get_origin(kind) is tuple:
        return tuple(_rebuild(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is UnionType and value is not None:  # a section or None
        return _rebuild(get_args(kind)[0], value)
    return value
