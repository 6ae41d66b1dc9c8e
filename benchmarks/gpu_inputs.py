"""The sizes at which benchmarks/gpu.py measures, and its data: nothing is downloaded."""

import io
import json
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ovsegmentor_step import read_captions, write_bert
from PIL import Image

from owseg.augmentation import AugmentConfig
from owseg.encoders import EncoderConfig
from owseg.evaluation.protocols import View
from owseg.method_config import TrainableConfig
from owseg.methods.clip import ClipConfig
from owseg.methods.ovsegmentor import OvSegmentorConfig
from owseg.methods.tcl import TclConfig
from owseg.methods.vilseg import VilSegConfig
from owseg.methods.vilseg.towers import TextSize
from owseg.optim import OptimConfig
from owseg.text import prompt_templates
from owseg.vit import VitSize

SMALL_CLIP = Path(__file__).parents[1] / "configs" / "smoke_clip.json"
SMALL_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    encoder: EncoderConfig
    methods: dict[str, TrainableConfig]
    samples: int
    """In the shards."""
    photo: tuple[int, int]
    """Height and width of their pictures."""
    labelled: tuple[int, int]
    """Height and width of the picture that is labelled."""
    view: View
    batch_sizes: tuple[int, ...]
    loop_batch: int
    """Batch size of the loop over shards."""
    most: int
    """Measured steps or pictures of a row at most, where its time is not over before."""


def paper_sizes(folder: Path) -> Sizes:
    """ViT-B/16 at 224 pixels, and a BERT-base in `folder`, as the papers have them."""
    methods = {
        "tcl": TclConfig(),
        "ovsegmentor": OvSegmentorConfig(text_tower=str(folder)),
        "vilseg": VilSegConfig(),
        "clip": ClipConfig(),
    }
    view = View(short_side=448, window=448, stride=224)
    return Sizes(
        EncoderConfig(model="ViT-B-16-quickgelu"), methods, 2048, (512, 683), (480, 640), view, (32, 128, 512), 128, 100
    )


def toy_sizes(folder: Path) -> Sizes:
    """Models of two narrow blocks at 64 pixels, for the comparison of losses and for trying the script on a CPU."""
    same: dict[str, Any] = {"augment": AugmentConfig(size=64), "optim": OptimConfig(lr_batch=0, warmup=2)}
    heads: dict[str, Any] = {"head_hidden": 24, "head_bottleneck": 8, "head_out": 16}
    vit = VitSize(image_size=64, patch_size=16, width=32, depth=2, heads=2)
    text = TextSize(layers=1, width=32, heads=2, context_length=16, vocabulary=1024)
    grouping = OvSegmentorConfig(
        image_tower="clip", text_tower=str(folder), heads=0, tokens=6, groups=3, hidden=24, joint=16, templates="simple", **same
    )
    methods = {
        "tcl": TclConfig(templates="simple", **same),
        "ovsegmentor": replace(grouping, phases=tuple(replace(phase, augment=None) for phase in grouping.phases)),
        "vilseg": VilSegConfig(image_size=vit, text=text, joint=16, local_crops=2, local_size=32, clusters=5, **heads, **same),
        "clip": ClipConfig(**same),
    }
    view = View(short_side=64, window=64, stride=32)
    return Sizes(EncoderConfig(model=str(SMALL_CLIP)), methods, 64, (72, 96), (72, 96), view, (4, 8), 8, 3)


def write_shards(folder: Path, samples: int, photo: tuple[int, int], shard_size: int = 1024) -> list[Path]:
    """Shards of noisy pictures under real captions in `folder`; a few pictures serve all samples."""
    folder.mkdir()
    rng, tars = np.random.default_rng(0), []
    pictures = [_jpeg(rng, *photo) for _ in range(min(samples, 64))]
    captions, entities = read_captions(samples)
    for start in range(0, samples, shard_size):
        tars.append(folder / f"{start // shard_size:05}.tar")
        with tarfile.open(tars[-1], "w") as tar:
            for index in range(start, min(start + shard_size, samples)):
                about = json.dumps({"entities": entities[index]}).encode()
                files = {".jpg": pictures[index % len(pictures)], ".txt": captions[index].encode(), ".json": about}
                for suffix, data in files.items():
                    member = tarfile.TarInfo(f"{index:08}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return tars


def _jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(rng, height, width)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture [H, W, 3] uint8 of soft blobs, with noise that makes its JPEG as large as a photo's."""
    blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy: np.ndarray = np.clip(np.asarray(blobs) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    return noisy


def write_text_tower(folder: Path, **sizes: int) -> None:
    """A BERT's config and a tokenizer that knows the captions' words; its weights will be random."""
    captions, _ = read_captions(4096)
    write_bert(folder, [*captions, *prompt_templates("imagenet80")], **sizes)
