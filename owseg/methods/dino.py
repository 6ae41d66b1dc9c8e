"""DINO: self-distillation with no labels (Caron et al., ICCV 2021, 2104.14294).

A student's crops of an image must predict what its momentum teacher says of the whole. No text is read: the tower that comes of
it, the teacher's, tells things apart that it cannot name, for methods that are built on such a one (Talk2DINO, ProxyCLIP). It
segments nothing itself. In real use published weights take its place; a corpus for which there are none, such as the miniature
world's, trains it first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.crops import Crops, jitter
from owseg.data import Batch
from owseg.encoders import EncoderConfig
from owseg.exporting.folders import save_vit
from owseg.fields import check_range, setting
from owseg.image_tower import ImageTower
from owseg.losses import global_mean
from owseg.method_config import Tower, TrainableConfig
from owseg.momentum import follow, frozen_copy
from owseg.normalisation import Normalisation
from owseg.optim import OptimConfig
from owseg.phases import Phase, augmentations
from owseg.self_distillation import DistillationHead, SelfDistilled, loss_at, moved_centre
from owseg.text import CLIP_VOCABULARY, clip_tokenizer
from owseg.vit import VitSize

KEY = "method_settings.dino"


@dataclass(frozen=True, kw_only=True)
class DinoConfig(TrainableConfig):
    """The paper's ViT-B/16 on ImageNet, as far as a table of settings goes; momentum and decay are fixed."""

    name: Literal["dino"] = "dino"
    """Method name."""
    phases: tuple[Phase, ...] = setting((Phase(steps=500_000, train=("image.", "head.")),), training_only=True)
    """Training phases: 400 epochs of ImageNet's 1.28 million images."""
    optim: OptimConfig = setting(
        OptimConfig(batch_size=1024, lr=7.5e-4, min_lr=2e-6, lr_batch=256, warmup=12500, weight_decay=0.04, clip_norm=0.3),
        training_only=True,
    )
    """Optimiser and schedule."""
    augment: AugmentConfig = setting(AugmentConfig(min_area=0.25, rand_augment="", erase=0.0), training_only=True)
    """The global crops: size and smallest area."""
    image_tower: str = "vit_base_patch16_224"
    """Image tower: a timm ViT by name, from scratch."""
    image_size: VitSize = VitSize()
    """Its sizes, where they are not the model's."""
    local_crops: int = setting(10, training_only=True)
    """Small crops of each image, which the student alone sees; 0 = none."""
    local_size: int = setting(96, training_only=True)
    """Side of a small crop in pixels, a multiple of the patch size."""
    local_area: tuple[float, ...] = setting((0.05, 0.25), training_only=True)
    """Smallest and largest share of the image that a small crop covers."""
    colour_jitter: float = setting(0.4, training_only=True)
    """Largest change of brightness, contrast and saturation of crops, each drawn by image, 0..1."""
    hidden: int = setting(2048, training_only=True)
    """Width of the head's hidden layers."""
    bottleneck: int = setting(256, training_only=True)
    """Width before its last layer."""
    outputs: int = setting(65536, training_only=True)
    """What it tells apart."""
    student_temperature: float = setting(0.1, training_only=True)
    """Temperature of the student's softmax."""
    teacher_temperature: float = setting(0.07, training_only=True)
    """Temperature of the teacher's."""
    warmup_teacher_temperature: float = setting(0.04, training_only=True)
    """Where the teacher's temperature starts ..."""
    warmup_teacher_steps: int = setting(62_500, training_only=True)
    """... and the steps in which it reaches its final value."""
    momentum: float = setting(0.996, training_only=True)
    """How much of the teacher stays at each step, 0..1 (the paper's rises to 1)."""
    centre_momentum: float = setting(0.9, training_only=True)
    """How much of the centre of the teacher's outputs stays at each step, 0..1."""

    def __post_init__(self) -> None:
        check_range(self, "colour_jitter", "momentum", "centre_momentum", least=0, most=1)
        check_range(self, "local_size", "hidden", "bottleneck", "outputs", least=1)
        check_range(self, "local_crops", "warmup_teacher_steps", least=0)
        check_range(self, "student_temperature", "teacher_temperature", "warmup_teacher_temperature", least=1e-3)
        if len(self.local_area) != 2 or not 0 < self.local_area[0] <= self.local_area[1] <= 1:
            raise InputError(f"local_area: {list(self.local_area)} must be two shares, 0 < smallest <= largest <= 1")

    @property
    def uses_clip(self) -> bool:
        """Never."""
        return False

    @property
    def tower(self) -> Tower:
        """The teacher's ViT."""
        asked = "method_settings.talk2dino.image_weights=pretrain"
        return Tower("image tower", "teacher.vit.", "image_tower.safetensors", asked)

    def supervision(self, encoder: EncoderConfig) -> str:
        """What it is learned from, in the words of the comparison table."""
        del encoder
        return "images"

    def build(self, encoder: None) -> "Dino":
        """The method with random weights. Raises InputError where crops are no whole patches."""
        del encoder
        return Dino(self)


class Dino(SelfDistilled):
    """The student's tower and head, and the teacher that follows them."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenize = clip_tokenizer(CLIP_VOCABULARY, 77)
        self.image = ImageTower(config.image_tower, config.image_size, KEY)
        self.head = DistillationHead(self.image.width, config.hidden, config.bottleneck, config.outputs)
        self.views = Crops(config.local_crops, config.local_size, config.local_area)
        sizes = {f"{key}.size": augment.size for key, augment in augmentations(config.phases, config.augment)}
        for key, size in {**sizes, **({"local_size": config.local_size} if config.local_crops else {})}.items():
            if size % self.image.patch_size:
                raise InputError(f"{KEY}.{key}: {size} pixels are no whole patches of {self.image.patch_size}; give a multiple")
        self.teacher, self.teacher_head = frozen_copy(self.image), frozen_copy(self.head)
        self.keep_teacher_state(config.outputs, config.momentum)

    def move_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student."""
        follow(self.teacher, self.image, momentum)
        follow(self.teacher_head, self.head, momentum)

    def encode(self, batch: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each image's loss "distillation" [B], and what the teacher says of it on average, "teacher" [B, K]."""
        whole = torch.cat([batch.image, *batch.views["global"].unbind(dim=1)])
        local = batch.views["local"].transpose(0, 1).flatten(0, 1)
        whole, local = (jitter(images, self.config.colour_jitter) for images in (whole, local))
        crops = [self.image(images).whole for images in (whole, local) if len(images)]
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher(whole).whole)
        loss = loss_at(self.config, int(self.taken), self.head(torch.cat(crops)), teacher, shared["centre"])
        return {"distillation": loss, "teacher": torch.stack(teacher.chunk(2)).mean(dim=0)}

    def combine(self, encoded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"distillation": the mean over the batch}. Exact over ranks."""
        del batch
        said, config = encoded["teacher"], self.config
        self.diagnostics = {"distillation/teacher_entropy": _entropy(said - self.centre, config.teacher_temperature)}
        if self.training:
            self.centre.copy_(moved_centre(self.centre, said, config.centre_momentum))
        return {"distillation": encoded["distillation"].mean()}

    @torch.no_grad()
    def save_towers(self, folder: Path, normalisation: Normalisation) -> dict[str, str]:
        """Write the teacher's ViT."""
        return {"image_tower": save_vit(self.teacher.vit, normalisation, folder / "image_tower")}


@torch.no_grad()
def _entropy(logits: Tensor, temperature: float) -> Tensor:
    """Mean entropy in nats of the teacher's softmax: near 0 or near log K, it has collapsed."""
    shares = (logits.float() / temperature).softmax(dim=-1)
    return global_mean(torch.special.entr(shares).sum(dim=-1).mean())
