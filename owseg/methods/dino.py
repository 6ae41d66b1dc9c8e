"""DINO: self-distillation with no labels (Caron et al., ICCV 2021, 2104.14294).

A student's crops of an image must predict what its momentum teacher says of the whole. No text is read: the tower that comes
of it tells things apart that it cannot name, for methods that are built on such a one (Talk2DINO). It segments nothing itself.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.crops import Crops
from owseg.data import Batch
from owseg.encoders import EncoderConfig
from owseg.fields import check_range, setting
from owseg.image_tower import ImageTower
from owseg.losses import global_mean
from owseg.method_config import TrainableConfig
from owseg.momentum import follow, frozen_copy
from owseg.optim import OptimConfig
from owseg.phases import Phase, augmentations
from owseg.self_distillation import DistillationHead, distillation_loss, moved_centre, teacher_temperature
from owseg.text import CLIP_VOCABULARY, clip_tokenizer
from owseg.trainable import TrainableMethod
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
    """Small crops of each image; the student alone sees them."""
    local_size: int = setting(96, training_only=True)
    """Side of a small crop in pixels, a multiple of the patch size."""
    local_area: tuple[float, ...] = setting((0.05, 0.25), training_only=True)
    """Smallest and largest share of the image that a small crop covers."""
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
        check_range(self, "momentum", "centre_momentum", least=0, most=1)
        check_range(self, "local_size", "hidden", "bottleneck", "outputs", least=1)
        check_range(self, "local_crops", "warmup_teacher_steps", least=0)
        check_range(self, "student_temperature", "teacher_temperature", "warmup_teacher_temperature", least=1e-3)
        if len(self.local_area) != 2 or not 0 < self.local_area[0] <= self.local_area[1] <= 1:
            raise InputError(f"local_area: {list(self.local_area)} must be two shares, 0 < smallest <= largest <= 1")

    @property
    def uses_clip(self) -> bool:
        """Never."""
        return False

    def supervision(self, encoder: EncoderConfig) -> str:
        """What it is learned from, in the words of the comparison table."""
        del encoder
        return "images"

    def build(self, encoder: None) -> "Dino":
        """The method with random weights. Raises InputError where crops are no whole patches."""
        del encoder
        return Dino(self)


class Dino(TrainableMethod):
    """The student's tower and head, and the teacher that follows them."""

    centre: Tensor
    """[1, K]: what the teacher says on average."""
    taken: Tensor
    """[] int64: steps taken so far."""

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
        self.register_buffer("centre", torch.zeros(1, config.outputs))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self.extra_state_prefixes = ("teacher.", "teacher_head.", "centre", "taken")

    @torch.no_grad()
    def begin_phase(self, phase: Phase) -> None:
        """The teacher starts out as a copy of the student."""
        del phase
        if self.taken == 0:
            self.move_teacher(momentum=0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """The teacher follows the student."""
        self.move_teacher(self.config.momentum)
        self.taken += 1

    def move_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student."""
        follow(self.teacher, self.image, momentum)
        follow(self.teacher_head, self.head, momentum)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"distillation": the mean over the global batch}."""
        config = self.config
        whole = torch.cat([batch.image, *batch.views["global"].unbind(dim=1)])
        crops = [self.image(whole).whole]
        if config.local_crops:
            crops.append(self.image(batch.views["local"].transpose(0, 1).flatten(0, 1)).whole)
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher(whole).whole)
        loss = distillation_loss(
            self.head(torch.cat(crops)),
            teacher,
            self.centre.clone(),
            student_temperature=config.student_temperature,
            teacher_temperature=teacher_temperature(
                int(self.taken),
                warmup=config.warmup_teacher_temperature,
                final=config.teacher_temperature,
                warmup_steps=config.warmup_teacher_steps,
            ),
        )
        if self.training:
            self.centre.copy_(moved_centre(self.centre, teacher, config.centre_momentum))
        self.diagnostics = {"distillation/teacher_entropy": _entropy(teacher - self.centre, config.teacher_temperature)}
        return {"distillation": loss.mean()}


@torch.no_grad()
def _entropy(logits: Tensor, temperature: float) -> Tensor:
    """Mean entropy in nats of the teacher's softmax: near 0 or near log K, it has collapsed."""
    shares = (logits.float() / temperature).softmax(dim=-1)
    return global_mean(torch.special.entr(shares).sum(dim=-1).mean())
