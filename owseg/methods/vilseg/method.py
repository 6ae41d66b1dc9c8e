"""ViL-Seg: contrasting and clustering vision-language embedding (Liu et al., ECCV 2022, 2207.08455).

An image and a text encoder learn together from captions: crops of an image must agree with a momentum teacher's view of it
(vision-based contrast), images with their captions (cross-modal contrast), and a head on the patches' embeddings clusters them
so that an image and its transformed twin are clustered alike (online clustering). A photo is cut into its clusters, and each
is named.

A reconstruction: the authors published no code and few details. What is guessed is a setting, listed in docs/fidelity.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg import InputError
from owseg.data import AugmentConfig, Batch
from owseg.encoders import Encoder, EncoderConfig, pad_to_multiple
from owseg.fields import setting
from owseg.losses import at_least_float32, info_nce, temperature
from owseg.method_config import TrainableConfig
from owseg.methods.vilseg.clustering import (
    Form,
    agreement,
    clusters_per_image,
    inverse,
    perplexity,
    random_affine,
    warp,
)
from owseg.methods.vilseg.regions import connected_components, paint, pool_regions
from owseg.methods.vilseg.self_distillation import (
    DistillationHead,
    distillation_loss,
    moved_centre,
    teacher_temperature,
)
from owseg.methods.vilseg.towers import KEY, ImageTower, TextSize, TextTower, Tokens, VitSize, dino_tag, is_dino
from owseg.methods.vilseg.views import Crops, Views, jitter
from owseg.momentum import follow, frozen_copy
from owseg.optim import OptimConfig
from owseg.phases import Phase, augmentations, scheduled_phases
from owseg.text import check_templates, prompt_templates
from owseg.trainable import TrainableMethod

COLDEST = 1e-3
"""Lowest temperature of a softmax."""
COLLAPSED = 0.2
"""The alarm: fewer clusters than this share of them are in use, effectively (5 of 25)."""
LEARNED = ("image.", "text.", "image_projection.", "text_projection.", "log_scale", "vision_head.", "clusters.")


@dataclass(frozen=True, kw_only=True)
class VilSegConfig(TrainableConfig):
    """The paper's setting as far as it is known; the rest is guessed after its closest published kin (docs/fidelity.md)."""

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
    templates: str = setting("simple", shown=True)
    """Prompt templates of class names: plain, simple, imagenet7, tcl (those 7 and 2 more), maskclip (5) or imagenet80."""
    components: bool = False
    """Name each connected component of a cluster by itself."""
    background_threshold: float = 0.5
    """Probability of the best name below which a region is background, 0..1, on sets that have that class."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        shares = ("colour_jitter", "momentum", "centre_momentum", "twin_flip", "background_threshold")
        for field in shares:
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"{field}: {getattr(self, field)} is outside 0..1")
        for field in ("joint", "local_size", "head_hidden", "head_bottleneck", "head_out"):
            if getattr(self, field) < 1:
                raise InputError(f"{field}: {getattr(self, field)} must be at least 1")
        for field in (
            "local_crops",
            "vision_weight",
            "cluster_weight",
            "cluster_shifts",
            "warmup_teacher_steps",
            "cluster_lambda",
        ):
            if getattr(self, field) < 0:
                raise InputError(f"{field}: {getattr(self, field)} is negative")
        for field in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
            if getattr(self, field) < COLDEST:
                raise InputError(f"{field}: {getattr(self, field)} must be at least {COLDEST}: colder softmaxes overflow")
        if self.clusters < 2:
            raise InputError(f"clusters: {self.clusters} tells nothing apart; give at least 2")
        if not 0 <= self.twin_degrees <= 180:
            raise InputError(f"twin_degrees: {self.twin_degrees} is outside 0..180")
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

    def build(self, encoder: Encoder | None) -> "VilSeg":
        """The method with random weights; no encoder is looked at. Raises InputError where sizes do not fit each other."""
        del encoder
        return VilSeg(self)


class VilSeg(TrainableMethod):
    """Both towers, their projections into the joint space, the contrast's head with its teacher, and the clustering head."""

    centre: Tensor
    """[1, K]: what the teacher says on average."""
    taken: Tensor
    """[] int64: steps taken so far."""

    def __init__(self, config: VilSegConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image_tower, config.image_size)
        self.text = TextTower(config.text)
        self.tokenize = self.text.tokenize
        self.image_projection = nn.Linear(self.image.width, config.joint, bias=False)
        self.text_projection = nn.Linear(self.text.width, config.joint, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.clusters = nn.Linear(self.image.width, config.clusters)
        self.vision_head = DistillationHead(
            self.image.width,
            config.head_hidden,
            config.head_bottleneck,
            config.head_out,
            norm_last_layer=config.norm_last_layer,
        )
        check_sizes(config, self.image)
        self.background_threshold: float | None = config.background_threshold
        self.regions_across_windows = not config.components
        self.views = Crops(config.local_crops, config.local_size, config.local_area) if config.vision_weight else None
        self.teacher = frozen_copy(self.image) if config.vision_weight else None
        self.teacher_head = frozen_copy(self.vision_head) if config.vision_weight else None
        self.register_buffer("centre", torch.zeros(1, config.head_out))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self.extra_state_prefixes = ("teacher.", "teacher_head.", "centre", "taken")

    # ------------------------------------------------------------------------------------------------------------ training

    def initialise(self) -> None:
        """Load the pretrained weights that training starts from, where DINO's are asked for."""
        if self.config.init == "dino":
            self.image.load(dino_tag(self.config.image_tower), self.config.image_weights)

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
        """Move the teacher, where there is one, towards the student."""
        if self.teacher is not None and self.teacher_head is not None:  # both or neither
            follow(self.teacher, self.image, momentum)
            follow(self.teacher_head, self.vision_head, momentum)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted losses of `losses_from`, on crops of the loader and a twin drawn here."""
        config, first = self.config, batch.image
        theta = random_affine(
            len(first),
            degrees=config.twin_degrees,
            scale=config.twin_scale,
            flip=config.twin_flip,
            device=first.device,
            dtype=first.dtype,
        )
        whole, local = first, first.new_zeros(0, *first.shape[1:])
        if batch.views:
            whole = torch.cat([first, *batch.views["global"].unbind(dim=1)])
            local = batch.views["local"].transpose(0, 1).flatten(0, 1)
        whole, local, twin = (jitter(images, config.colour_jitter) for images in (whole, local, warp(first, theta)))
        return self.losses_from(Views(whole, local, twin, theta), batch.tokens)

    def losses_from(self, views: Views, tokens: Tensor) -> dict[str, Tensor]:
        """The weighted losses: "contrast" (image-text), "vision" and "cluster", of texts [B, L]. Exact over ranks."""
        config, batch = self.config, len(tokens)
        caption = self.text_projection(self.text(tokens))
        seen = self.image(views.whole)
        each = [info_nce(image, caption, self.log_scale) for image in torch.split(self.embed(seen), batch)]
        losses = {"contrast": torch.stack(each).mean()}
        if config.vision_weight:
            losses["vision"] = config.vision_weight * self.vision_loss(seen, views)
        if config.cluster_weight:
            losses["cluster"] = config.cluster_weight * self.cluster_loss(seen.patches[:batch], seen.grid, views)
        return losses

    def embed(self, tokens: Tokens) -> Tensor:
        """Images [B, E] in the joint space."""
        pooled = tokens.patches.mean(dim=1) if self.config.pool == "mean" else tokens.whole
        embedded: Tensor = self.image_projection(pooled)
        return embedded

    def vision_loss(self, student: Tokens, views: Views) -> Tensor:
        """DINO's loss of both global views, of which `student` are the tokens, and the small crops."""
        config = self.config
        assert self.teacher is not None
        assert self.teacher_head is not None
        crops = [self.summary(student)]
        if len(views.local):
            crops.append(self.summary(self.image(views.local)))
        with torch.no_grad():
            teacher = self.teacher_head(self.summary(self.teacher(views.whole)))
        loss = distillation_loss(
            self.vision_head(torch.cat(crops)),
            teacher,
            self.centre,
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
        return loss

    def summary(self, tokens: Tokens) -> Tensor:
        """What of crops the vision-based contrast compares, [B, C]."""
        return tokens.whole if self.config.vision_token == "cls" else tokens.patches.mean(dim=1)

    def cluster_loss(self, patches: Tensor, grid: tuple[int, int], views: Views) -> Tensor:
        """IIC's loss of the clusters of the first global view [B, h*w, C] and of its twin, warped back onto it."""
        config = self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.cluster_gradient):
            twin = self.image(views.twin).patches
        own, other = (self.assign(x if config.cluster_gradient else x.detach(), grid) for x in (patches, twin))
        back = inverse(views.theta).to(own)
        inside = warp(torch.ones_like(own[:, :1]), back)[:, 0]
        found = agreement(
            own,
            warp(other, back),
            (inside > 0.999).to(own),
            weight=config.cluster_lambda,
            shifts=config.cluster_shifts,
            form=config.cluster_form,
            pool=config.cluster_pool,
        )
        used = perplexity(found.marginal)
        self.diagnostics = {
            "cluster/mutual_information": -found.loss_unweighted.detach(),
            "cluster/perplexity": used,
            "cluster/per_image": clusters_per_image(own.detach()),
            "cluster/collapsed": (used < COLLAPSED * config.clusters).float(),
        }
        return found.loss

    def assign(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Soft assignments [B, clusters, h, w] of patches [B, h*w, C]; in at least float32."""
        logits: Tensor = self.clusters(patches).transpose(1, 2).unflatten(2, grid)
        return logits.to(at_least_float32(logits)).softmax(dim=1)

    # ----------------------------------------------------------------------------------------------------------- inference

    @torch.no_grad()
    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, E]; background is not among `names`."""
        templates = prompt_templates(self.config.templates)
        prompts = [template.format(name) for name in names for template in templates]
        tokens = self.tokenize(prompts).to(self.log_scale.device)
        texts = torch.cat([F.normalize(self.text_projection(self.text(some)), dim=-1) for some in torch.split(tokens, 256)])
        return F.normalize(texts.reshape(len(names), len(templates), -1).mean(dim=1), dim=-1)

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Probabilities [B, n, H, W] of windows [B, 3, H, W]; with `background` a constant plane comes first: [B, 1 + n, H, W].

        Each region has the probabilities of its own mean embedding: the softmax over all classes at the learned temperature.
        """
        tokens, regions, (top, left) = self.cut(image)
        patches = self.image_projection(tokens.patches).unflatten(1, tokens.grid)
        embedded = pool_regions(patches, regions, self.image.patch_size)
        scores = (temperature(self.log_scale) * embedded @ classes.T).softmax(dim=-1)
        painted = paint(scores, regions[:, top : top + image.shape[-2], left : left + image.shape[-1]])
        return F.pad(painted, (0, 0, 0, 0, 1, 0), value=self.config.background_threshold) if background else painted

    @torch.no_grad()
    def regions(self, image: Tensor, classes: Tensor) -> Tensor:
        """The region [B, H, W] int64 that each pixel of windows [B, 3, H, W] lies in; names have no say."""
        del classes
        _, regions, (top, left) = self.cut(image)
        return regions[:, top : top + image.shape[-2], left : left + image.shape[-1]]

    def cut(self, image: Tensor) -> tuple[Tokens, Tensor, tuple[int, int]]:
        """Tokens of padded windows, the regions of their pixels [B, H', W'], and where the windows lie in them (top, left).

        A pixel's cluster is the one with the highest logit, bilinearly between patches.
        """
        padded, corner = pad_to_multiple(image, (self.image.patch_size, self.image.patch_size))
        tokens = self.image(padded)
        logits = self.clusters(tokens.patches).transpose(1, 2).unflatten(2, tokens.grid)
        size = (padded.shape[-2], padded.shape[-1])
        clusters = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1)
        return tokens, connected_components(clusters) if self.config.components else clusters, corner


def check_sizes(config: VilSegConfig, tower: ImageTower) -> None:
    """Raise InputError where views are no whole patches, or a batch is too small to cluster."""
    patch = tower.patch_size
    if config.local_crops and config.vision_weight and config.local_size % patch:
        raise InputError(f"{KEY}.local_size: {config.local_size} pixels are no whole patches of {patch}; give a multiple")
    for span, (key, augment) in zip(
        scheduled_phases(config.phases, config.optim), augmentations(config.phases, config.augment), strict=True
    ):
        size, batch = augment.size, span.schedule.optim.batch_size
        if size % patch:
            raise InputError(f"{KEY}.{key}.size: {size} pixels are no whole patches of {patch}; give a multiple")
        if config.cluster_weight and config.cluster_shifts >= size // patch:
            raise InputError(f"{KEY}.cluster_shifts: {config.cluster_shifts} is no shift of a grid of {size // patch} patches")
        patches, joint = (size // patch) ** 2, config.clusters**2
        if config.cluster_weight and batch * patches < joint:
            raise InputError(
                f"{KEY}.{span.schedule.key}.batch_size: {batch} is too small for the clustering head: "
                f"{config.clusters} x {config.clusters} pairs of clusters need at least {math.ceil(joint / patches)} images of "
                f"{patches} patches"
            )
