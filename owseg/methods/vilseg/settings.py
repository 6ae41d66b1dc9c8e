"""ViL-Seg's settings and what they must keep to; its losses and its inference are in `method.py`."""

import math
from dataclasses import dataclass
from typing import Literal

from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.encoders import EncoderConfig
from owseg.fields import check_range, setting
from owseg.method_config import TrainableConfig
from owseg.methods.vilseg.clustering import Form
from owseg.methods.vilseg.towers import KEY, TextSize, is_dino
from owseg.optim import OptimConfig
from owseg.phases import Phase, augmentations, scheduled_phases
from owseg.text import check_templates
from owseg.vit import VitSize

COLDEST = 1e-3
"""Lowest temperature of a softmax."""
LEARNED = ("image.", "text.", "image_projection.", "text_projection.", "log_scale", "vision_head.", "clusters.")


@dataclass(frozen=True, kw_only=True)
class VilSegSettings(TrainableConfig):
    """The settings alone; `VilSegConfig` is these and what they build."""

    name: Literal["vilseg"] = "vilseg"
    """Method name."""
    phases: tuple[Phase, ...] = setting((Phase(steps=87891, train=LEARNED),), training_only=True)
    """Training phases (30 epochs of 12 million pairs)."""
    optim: OptimConfig = setting(
        OptimConfig(
            batch_size=4096, lr=1.6e-3, min_lr=4e-5, lr_batch=4096, warmup=5859, weight_decay=0.05, eps=1e-8, clip_norm=5.0
        ),
        training_only=True,
    )
    """Optimiser and schedule (GroupViT's)."""
    augment: AugmentConfig = setting(AugmentConfig(min_area=0.4, rand_augment="", erase=0.0), training_only=True)
    """The global views: size and smallest area."""
    init: Literal["scratch", "dino"] = setting("scratch", training_only=True)
    """What the image tower begins as: random weights, or DINO's. Never CLIP's: that would be another class of method."""
    image_tower: str = "vit_base_patch16_224"
    """Image tower: a timm ViT by name; with init=dino its weights are those of the tag "dino", or of a tag given here."""
    image_weights: str = setting("", training_only=True, local_path=True)
    """Local file of the weights that init=dino asks for, in timm's or DINO's names; empty = timm downloads them."""
    image_size: VitSize = VitSize()
    """Sizes of the image tower where they are not the named model's."""
    text: TextSize = TextSize()
    """Text tower, trained from scratch."""
    joint: int = 256
    """Width of the space that image and text share."""
    pool: Literal["mean", "cls"] = setting("mean", training_only=True)
    """What of an image meets its caption: the mean of its patches, so that they lie in the text space, or the class token."""
    local_crops: int = setting(8, training_only=True)
    """Small crops beside the two global views, which the student alone sees; 0 = none."""
    local_size: int = setting(96, training_only=True)
    """Side of a small crop in pixels."""
    local_area: tuple[float, ...] = setting((0.05, 0.4), training_only=True)
    """Smallest and largest share of the image that a small crop covers, 0..1."""
    colour_jitter: float = setting(0.4, training_only=True)
    """Largest change of brightness, contrast and saturation of views, crops and twins, each drawn by image, 0..1."""
    vision_weight: float = 1.0
    """Weight of the vision-based contrast; 0 leaves it out, the teacher and the small crops with it."""
    vision_token: Literal["cls", "mean"] = setting("cls", training_only=True)
    """What of a crop the vision-based contrast compares: the class token, or the mean of the patches."""
    head_hidden: int = 2048
    """Hidden width of the contrast's head."""
    head_bottleneck: int = 256
    """Width before its last layer."""
    head_out: int = 65536
    """Its outputs; 16384 is cheaper."""
    norm_last_layer: bool = setting(True, training_only=True)
    """Keep the rows of its last layer at norm 1."""
    student_temperature: float = setting(0.1, training_only=True)
    """Temperature of the student's softmax."""
    teacher_temperature: float = setting(0.04, training_only=True)
    """Temperature of the teacher's; above 0.07 it is unstable."""
    warmup_teacher_temperature: float = setting(0.04, training_only=True)
    """Where the teacher's temperature starts ..."""
    warmup_teacher_steps: int = setting(0, training_only=True)
    """... and the steps in which it reaches its final value."""
    momentum: float = setting(0.996, training_only=True)
    """How much of the teacher stays at each step, 0..1; fixed, as one that ends at 1 would stop following the texts."""
    centre_momentum: float = setting(0.9, training_only=True)
    """How much of the centre of the teacher's outputs stays at each step, 0..1."""
    clusters: int = 25
    """Outputs of the clustering head: the most regions of an image, unless components are asked for."""
    cluster_weight: float = setting(1.0, training_only=True)
    """Weight of the clustering loss; 0 leaves it out."""
    cluster_gradient: bool = setting(False, training_only=True)
    """Whether the clustering loss also trains the image tower, as IIC's does, or its own head alone."""
    cluster_pool: Literal["batch", "image"] = setting("batch", training_only=True)
    """Joint distribution of the clustering loss: over the batch of all workers, or of each image (which over-segments)."""
    cluster_form: Form = setting("uncollapsed", training_only=True)
    """Shifts of the two views: a joint for each (uncollapsed, IIC's released commands), or one over all (collapsed)."""
    cluster_shifts: int = setting(0, training_only=True)
    """Patches by which the two views are also shifted against each other."""
    cluster_lambda: float = setting(1.0, training_only=True)
    """Weight of the marginals' entropies in the mutual information; 1.5 uses clusters more evenly where they collapse."""
    twin_degrees: float = setting(15.0, training_only=True)
    """Largest rotation of the transformed twin."""
    twin_scale: float = setting(0.25, training_only=True)
    """Largest relative change of its size, either way."""
    twin_flip: float = setting(0.5, training_only=True)
    """Probability that it is mirrored, 0..1."""
    templates: str = setting("simple", shown=True, scores_only=True)
    """Prompt templates of class names: plain, simple, imagenet7, tcl (those 7 and 2 more), maskclip (5) or imagenet80."""
    components: bool = setting(False, scores_only=True)
    """Name each connected component of a cluster by itself."""
    background_threshold: float = setting(0.5, scores_only=True)
    """Probability of the best name below which a region is background, 0..1, on sets that have that class."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        check_range(self, "colour_jitter", "momentum", "centre_momentum", "twin_flip", "background_threshold", least=0, most=1)
        check_range(self, "joint", "local_size", "head_hidden", "head_bottleneck", "head_out", least=1)
        check_range(self, "local_crops", "vision_weight", "cluster_weight", "cluster_shifts", least=0)
        check_range(self, "warmup_teacher_steps", "cluster_lambda", least=0)
        check_range(self, "twin_degrees", least=0, most=180)
        for field in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
            if getattr(self, field) < COLDEST:
                raise InputError(f"{field}: {getattr(self, field)} must be at least {COLDEST}: colder softmaxes overflow")
        if self.clusters < 2:
            raise InputError(f"clusters: {self.clusters} tells nothing apart; give at least 2")
        if not 0 <= self.twin_scale < 1:
            raise InputError(f"twin_scale: {self.twin_scale} must be at least 0 and below 1")
        self._check_init()
        self._check_losses()
        area = self.local_area
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise InputError(f"local_area: {list(area)} must be two shares of an image, 0 < smallest <= largest <= 1")
        for key, augment in augmentations(self.phases, self.augment):
            if self.local_crops and self.vision_weight and self.local_size > augment.size:
                raise InputError(
                    f"local_size: crops of {self.local_size} pixels are larger than the images ({key}.size is {augment.size})"
                )

    @property
    def uses_clip(self) -> bool:
        """Never: both towers are its own."""
        return False

    def _check_init(self) -> None:
        """Raise InputError where the image tower would begin as something else than `init` says."""
        if self.image_weights and self.init != "dino":
            raise InputError(f"image_weights: {self.image_weights} is read with init=dino alone; set that too, or leave it out")
        if self.init == "dino" and not is_dino(self.image_tower):
            raise InputError(
                f"image_tower: {self.image_tower} does not begin as DINO's; name a ViT without a tag, or with one of DINO's "
                "such as vit_base_patch16_224.dino"
            )

    def _check_losses(self) -> None:
        """Raise InputError where all that a phase trains belongs to losses that are left out."""
        weights = (("vision_head.", self.vision_weight), ("clusters.", self.cluster_weight))
        idle = tuple(prefix for prefix, weight in weights if not weight)
        for number, phase in enumerate(self.phases):
            if idle and all(name.startswith(idle) for name in phase.train):
                raise InputError(f"phases.{number}.train: {', '.join(phase.train)} learns from a loss of weight 0 alone")

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        del encoder
        return "text" if self.init == "scratch" else "text; self-supervised image tower"


def check_sizes(config: VilSegSettings, patch: int) -> None:
    """Raise InputError where views are no whole patches of `patch` pixels, or a batch is too small to cluster."""
    if config.local_crops and config.vision_weight and config.local_size % patch:
        raise InputError(f"{KEY}.local_size: {config.local_size} pixels are no whole patches of {patch}; give a multiple")
    for scheduled, (key, augment) in zip(
        scheduled_phases(config.phases, config.optim), augmentations(config.phases, config.augment), strict=True
    ):
        size, batch = augment.size, scheduled.schedule.optim.batch_size
        if size % patch:
            raise InputError(f"{KEY}.{key}.size: {size} pixels are no whole patches of {patch}; give a multiple")
        if config.cluster_weight and config.cluster_shifts >= size // patch:
            raise InputError(f"{KEY}.cluster_shifts: {config.cluster_shifts} is no shift of a grid of {size // patch} patches")
        patches, joint = (size // patch) ** 2, config.clusters**2
        if config.cluster_weight and batch * patches < joint:
            raise InputError(
                f"{KEY}.{scheduled.schedule.key}.batch_size: {batch} is too small for the clustering head: "
                f"{config.clusters} x {config.clusters} pairs of clusters need at least {math.ceil(joint / patches)} images of "
                f"{patches} patches"
            )
