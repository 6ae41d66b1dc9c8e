"""OVSegmentor's settings: the paper's recipe."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.encoders import EncoderConfig
from owseg.fields import check_range, setting
from owseg.method_config import TrainableConfig
from owseg.methods.ovsegmentor.official import LAYOUT, OFFICIAL_THRESHOLDS
from owseg.optim import OptimConfig, Quirks
from owseg.phases import Phase, scheduled_phases
from owseg.published_layout import Layout
from owseg.text import check_templates

CLIP = "clip"
"""As the name of a tower: the run's CLIP."""
VISION = ("encoder.", "image_head.", "text_head.", "completion.", "answer_head.", "log_scale")
STAGE_1 = OptimConfig(batch_size=4096, lr=6.4e-4, lr_batch=4096, min_lr=1.6e-4, eps=1e-8,
                      schedule="cosine_unshifted", warmup=1953, warmup_lr=1.6e-5)  # fmt: skip
STAGE_2 = replace(STAGE_1, batch_size=1024, lr=1e-5, min_lr=1e-6, warmup_lr=4e-6, warmup=0)


@dataclass(frozen=True, kw_only=True)
class OvSegmentorSettings(TrainableConfig):
    """What the recipe names; epochs are of 4 million pairs."""

    name: Literal["ovsegmentor"] = "ovsegmentor"
    """Method name."""
    phases: tuple[Phase, ...] = setting(
        (
            Phase(steps=29297, train=(*VISION, "text.")),
            Phase(
                steps=39062,
                train=VISION,
                partners=True,
                optim=STAGE_2,
                augment=AugmentConfig(min_area=0.4, rand_augment="", erase=0.0),
            ),
        ),
        training_only=True,
    )
    """Both towers on captions and entities (30 epochs); then the image side, with mask consistency between partners (10)."""
    optim: OptimConfig = setting(STAGE_1, training_only=True)
    """Optimiser and schedule."""
    augment: AugmentConfig = setting(AugmentConfig(), training_only=True)
    """Training augmentation."""
    fidelity: Literal["exact", "official"] = setting("exact", training_only=True)
    """What losses do where the official code has quirks (docs/fidelity.md): exact or official."""
    image_tower: str = "vit_base_patch16_224.dino"
    """What the image tower begins as: a timm ViT by name and tag, or "clip": the run's encoder."""
    image_weights: str = setting("", training_only=True, local_path=True)
    """Local file of that ViT's weights; empty = timm downloads them."""
    text_tower: str = setting("bert-base-uncased", local_path=True)
    """Text tower: a transformers model by id or local folder, or "clip": that of the run's encoder."""
    heads: int = 8
    """Attention heads of the image tower and the blocks on top of it; 0 = as many as the ViT was trained with (DINO's 12)."""
    tokens: int = 64
    """Learnable tokens beside the patches."""
    groups: int = 8
    """Groups that they bind patches into."""
    drop_path: float = setting(0.1, training_only=True)
    """Stochastic depth of the image tower's last block, 0..1; it grows linearly from 0."""
    hidden: int = 4096
    """Width of the projection heads' hidden layer."""
    joint: int = 256
    """Width of the joint space."""
    entity_weight: float = setting(1.0, training_only=True)
    """Weight of masked entity completion; 0 leaves it out."""
    label_weight: float = setting(0.0, training_only=True)
    """Weight of GroupViT's multi-label loss, image against prompts of its caption's entities; 0 (the paper's) leaves it out."""
    mask_weight: float = setting(0.1, training_only=True)
    """Weight of cross-image mask consistency, in phases with partners; 0 leaves it out."""
    momentum: float = setting(0.99, training_only=True)
    """How much of the momentum encoder stays at each step, 0..1."""
    templates: str = setting("simple", shown=True, scores_only=True)
    """Prompt templates of class names: plain, simple, imagenet7, tcl (those 7 and 2 more), maskclip (5) or imagenet80."""
    top_classes: int = setting(5, shown=True, scores_only=True)
    """Classes that a window may show: the best by its image-level feature."""
    background_threshold: float = setting(0.9, scores_only=True)
    """Probability below which a group is background, 0..1, on sets that have that class."""
    thresholds: Literal["unified", "official"] = setting("unified", scores_only=True)
    """Background thresholds: one for all benchmarks, or the official ones (VOC 0.95, Context 0.35, COCO-Object 0.90)."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        check_range(self, "drop_path", "momentum", "background_threshold", least=0, most=1)
        check_range(self, "tokens", "groups", "hidden", "joint", "top_classes", least=1)
        check_range(self, "heads", "entity_weight", "label_weight", "mask_weight", least=0)
        for scheduled in scheduled_phases(self.phases, self.optim):
            if scheduled.schedule.optim.batch_size < 2:
                raise InputError(
                    f"{scheduled.schedule.key}.batch_size: batch norms and contrasts need at least 2 pairs in a batch"
                )

    @property
    def uses_clip(self) -> bool:
        """Whether a tower is the run's CLIP."""
        return CLIP in (self.image_tower, self.text_tower)

    @property
    def quirks(self) -> Quirks:
        """What engines must reproduce of the official code."""
        return Quirks(decay_scalars=self.fidelity == "official")

    @property
    def official_layout(self) -> Layout:
        """The names in the official files."""
        return LAYOUT

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        learned = encoder.supervision if self.uses_clip else "text"
        begun = ("" if self.image_tower == CLIP else "self-supervised image tower", "" if self.text_tower == CLIP else "BERT")
        return "; ".join([learned, *filter(None, begun)])

    def for_dataset(self, dataset: str) -> Self:
        """The settings for a benchmark: with its own background threshold where the official ones are asked for."""
        own = OFFICIAL_THRESHOLDS.get(dataset) if self.thresholds == "official" else None
        return self if own is None else replace(self, background_threshold=own)
