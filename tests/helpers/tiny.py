"""Small random models and shards for tests."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from owseg.augmentation import AugmentConfig
from owseg.checkpoint import Checkpoint, write_model
from owseg.encoders import Encoder, EncoderConfig, build_encoder
from owseg.evaluation.protocols import View
from owseg.fit import WEIGHTS, learned_state
from owseg.methods.chance import ChanceConfig
from owseg.methods.clip import ClipConfig
from owseg.methods.ovsegmentor import VISION, OvSegmentorConfig
from owseg.methods.talk2dino import Talk2DinoConfig
from owseg.methods.tcl import GROUNDER, Tcl, TclConfig
from owseg.methods.vilseg import VilSegConfig
from owseg.methods.vilseg.settings import LEARNED
from owseg.methods.vilseg.towers import TextSize
from owseg.methods.zero_shot import ZeroShotConfig
from owseg.normalisation import Normalisation
from owseg.optim import OptimConfig
from owseg.phases import Phase
from owseg.segmenter import Segmenter
from owseg.vit import VitSize

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 1},
}
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 200), "yellow": (220, 210, 30)}
VIEW = View(short_side=32, window=32, stride=16)
LABELS = ["red wall", "a green thing", "blue"]
AUGMENT = AugmentConfig(size=32, min_area=0.6, rand_augment="", erase=0.0)
HALF = Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)
OPTIM = OptimConfig(batch_size=8, lr=1e-3, min_lr=0.0, lr_batch=0, warmup=2)


def encoder_config(folder: Path, pretrained: str = "pretrain") -> EncoderConfig:
    """A config whose model file lies in `folder`."""
    path = folder / "model.json"
    path.write_text(json.dumps(MODEL))
    return EncoderConfig(model=str(path), pretrained=pretrained)


def encoder(folder: Path, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder(encoder_config(folder))


def clip_config(steps: int = 6) -> ClipConfig:
    return ClipConfig(phases=(Phase(steps=steps, train=("clip.",)),), optim=OPTIM, augment=AUGMENT)


def tcl_config(first: int = 3, second: int = 3) -> TclConfig:
    phases = (Phase(steps=first, train=GROUNDER), Phase(steps=second, train=(*GROUNDER, "block.")))
    return TclConfig(phases=phases, optim=OPTIM, augment=AUGMENT, templates="simple")


def open_gates(method: Tcl) -> Tcl:
    """As in the second phase, with gates open so that every parameter has a gradient."""
    for name, parameter in method.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.3)
    method.block.requires_grad_()
    return method


def ovsegmentor_config(first: int = 3, second: int = 3, **settings: Any) -> OvSegmentorConfig:
    """Both towers copies of the tiny CLIP; the second phase has partners and an optimiser of its own."""
    phases = (
        Phase(steps=first, train=(*VISION, "text.")),
        Phase(steps=second, train=VISION, partners=True, optim=replace(OPTIM, lr=5e-4)),
    )
    sizes: dict[str, Any] = {"heads": 0, "tokens": 6, "groups": 3, "drop_path": 0.0, "hidden": 24, "joint": 16}
    towers: dict[str, Any] = {"image_tower": "clip", "text_tower": "clip"}
    return OvSegmentorConfig(**{"phases": phases, "optim": OPTIM, "augment": AUGMENT, **sizes, **towers, **settings})


def vilseg_config(steps: int = 6, **settings: Any) -> VilSegConfig:
    """Towers of the tiny CLIP's size, with few clusters and a small contrast head."""
    sizes: dict[str, Any] = {
        "image_size": VitSize(image_size=32, patch_size=8, width=32, depth=2, heads=2),
        "text": TextSize(layers=1, width=32, heads=2, context_length=16, vocabulary=1024),
        "joint": 16,
        "local_crops": 2,
        "local_size": 16,
        "clusters": 5,
        "head_hidden": 24,
        "head_bottleneck": 8,
        "head_out": 16,
    }
    phases = (Phase(steps=steps, train=LEARNED),)
    return VilSegConfig(**{"phases": phases, "optim": OPTIM, "augment": AUGMENT, **sizes, **settings})


def talk2dino_config(steps: int = 6, **settings: Any) -> Talk2DinoConfig:
    """A small ViT with registers, random weights."""
    sizes: dict[str, Any] = {
        "image_tower": "vit_small_patch14_reg4_dinov2.lvd142m",
        "image_size": VitSize(image_size=32, patch_size=8, width=32, depth=2, heads=2),
    }
    phases = (Phase(steps=steps, train=("projection.",)),)
    return Talk2DinoConfig(**{"phases": phases, "optim": OPTIM, "augment": AUGMENT, **sizes, **settings})


def write_tower(folder: Path) -> str:
    """A file with weights for the image tower of `talk2dino_config`, the same at each call."""
    torch.manual_seed(1)
    state = talk2dino_config().build(encoder(folder)).image.vit.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "vit.safetensors")
    return str(folder / "vit.safetensors")


SEGMENTERS: dict[str, Callable[[Path], Segmenter]] = {
    "chance": lambda folder: ChanceConfig().build(encoder(folder)),
    "maskclip": lambda folder: ZeroShotConfig(templates="simple").build(encoder(folder)),
    "tcl": lambda folder: tcl_config().build(encoder(folder)),
    "ovsegmentor": lambda folder: ovsegmentor_config().build(encoder(folder)).eval(),
    "vilseg": lambda folder: vilseg_config().build(None).eval(),
    "talk2dino": lambda folder: talk2dino_config().build(encoder(folder)).eval(),
}
"""A method of each kind with random weights; its model file goes into the folder."""


def blocks(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture [H, W, 3] uint8 of blocks of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return colours.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def write_shards(folder: Path, samples: int = 40, per_shard: int = 16) -> list[Path]:
    """WebDataset tars of plain coloured pictures, captioned by their colour."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for start in range(0, samples, per_shard):
        path = folder / f"{start // per_shard:05}.tar"
        with tarfile.open(path, "w") as tar:
            for index in range(start, min(start + per_shard, samples)):
                name = list(COLOURS)[index % len(COLOURS)]
                pixels = np.clip(rng.normal(COLOURS[name], 12, (40, 48, 3)), 0, 255).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG")
                sidecar = json.dumps({"entities": [name]}).encode()
                for suffix, data in ((".jpg", buffer.getvalue()), (".txt", f"a {name} wall".encode()), (".json", sidecar)):
                    member = tarfile.TarInfo(f"{index:08}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        paths.append(path)
    return paths


def write_run(folder: Path) -> Path:
    """What the train stage of a run leaves, with random weights: `train/clip` and, with its `model.json`, `train/tcl`."""
    clip, tcl = (folder / "train" / name for name in ("clip", "tcl"))
    clip.mkdir(parents=True)
    tcl.mkdir()
    model = encoder(clip)
    weights = clip / "encoder.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.clip.state_dict().items()}, weights)
    config = tcl_config()
    method = config.build(model)
    with torch.no_grad():
        method.mask_shift.zero_()  # masks about the threshold, some above and some below
    save_file({name: tensor.clone() for name, tensor in learned_state(method, config.phases).items()}, tcl / WEIGHTS)
    described = encoder_config(clip, str(weights))
    write_model(Checkpoint(method=config, encoder=described, view=VIEW, weights=tcl / WEIGHTS))
    (clip / "model.json").unlink()  # the architecture's own file: what tcl/model.json records must do without it
    return folder


def encoder_of(run: Path) -> Path:
    """The weights of a run's own CLIP."""
    return run / "train" / "clip" / "encoder.safetensors"
