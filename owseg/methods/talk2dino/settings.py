"""Talk2DINO's settings; the defaults are the published configuration (ViT-B, COCO captions)."""

from dataclasses import dataclass, replace
from typing import Literal

from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.encoders import EncoderConfig
from owseg.fields import check_range, setting
from owseg.frozen_tower import TowerSettings
from owseg.method_config import TrainableConfig
from owseg.optim import OptimConfig
from owseg.phases import Phase, images_are_fixed
from owseg.text import check_templates

CLEANED = ("voc21", "coco_object")
"""Sets whose background the official evaluation cleans."""


@dataclass(frozen=True, kw_only=True)
class Talk2DinoSettings(TowerSettings, TrainableConfig):
    """The published configuration of a ViT-B."""

    name: Literal["talk2dino"] = "talk2dino"
    """Method name."""
    phases: tuple[Phase, ...] = setting((Phase(steps=323_600, train=("projection.",)),), training_only=True)
    """Training phases: 100 epochs of COCO's 414,113 training captions."""
    optim: OptimConfig = setting(
        OptimConfig(batch_size=128, lr=1e-4, min_lr=1e-4, lr_batch=0, warmup=0, weight_decay=0.0, eps=1e-8, clip_norm=1e9),
        training_only=True,
    )
    """Optimiser and schedule: Adam with a constant rate."""
    augment: AugmentConfig = setting(
        AugmentConfig(size=448, crop="centre", rand_augment="", erase=0.0, reduced_decoding=False), training_only=True
    )
    """Training crops: the middle of the image, always the same."""
    image_tower: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    """timm's name of a ViT with a class token, with the tag of its weights."""
    head: Literal["caption", "entity"] = setting("caption", training_only=True)
    """What chooses the image's head: its caption (the paper), or each entity stored with it, then a pair of its own."""
    fidelity: Literal["official", "exact"] = setting("exact", training_only=True)
    """exact: the contrastive loss; official: divided by the batch's size squared, as released (eps then damps Adam's steps)."""
    templates: str = setting("imagenet7", shown=True, scores_only=True)
    """Prompt templates of class names: plain, simple, imagenet7, tcl (those 7 and 2 more), maskclip (5) or imagenet80."""
    background_threshold: float = setting(0.55, scores_only=True)
    """Sigmoid of the cosine below which a pixel is background, 0..1, on sets that have that class (0.54 for a ViT-L)."""
    clean: float = setting(0.2, scores_only=True)
    """Weight of background cleaning on voc21 and coco_object; 0 leaves it out."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        check_range(self, "background_threshold", least=0, most=1)
        check_range(self, "clean", least=0)
        if self.head == "entity" and self.fidelity == "official":
            raise InputError("fidelity: the official form knows no head=entity; set fidelity=exact, or head=caption")
        if self.augment.erase or self.augment.rand_augment:
            raise InputError("augment: the image tower is frozen and reads images as they are; set erase=0 and rand_augment=")

    @property
    def depends_on_ranks(self) -> bool:
        """Never: the official form divides by the global batch."""
        return False

    @property
    def reads_features(self) -> bool:
        """Where its crops are the middle of the image: both towers are frozen."""
        return images_are_fixed(self.phases, self.augment)

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        return f"{encoder.supervision}; {self.tower_supervision}"

    def for_dataset(self, dataset: str) -> "Talk2DinoSettings":
        """Cleaning where the official evaluation cleans."""
        return self if dataset in CLEANED else replace(self, clean=0.0)
