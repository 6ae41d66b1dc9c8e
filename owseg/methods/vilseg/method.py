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
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.crops import Crops, jitter
from owseg.data import Batch
from owseg.encoders import Encoder, pad_to_multiple
from owseg.exporting.folders import save_clip_text, save_vit
from owseg.image_tower import ImageTower, Tokens
from owseg.losses import at_least_float32, info_nce, temperature
from owseg.methods.vilseg.clustering import (
    agreement_of,
    clusters_per_image,
    inverse,
    joint_counts,
    perplexity,
    random_affine,
    warp,
)
from owseg.methods.vilseg.regions import connected_components, paint, pool_regions
from owseg.methods.vilseg.settings import VilSegSettings, check_sizes
from owseg.methods.vilseg.towers import KEY, TextTower, dino_tag
from owseg.methods.vilseg.views import Views
from owseg.momentum import follow, frozen_copy
from owseg.normalisation import Normalisation
from owseg.self_distillation import DistillationHead, SelfDistilled, loss_at, moved_centre
from owseg.text import prompt_templates

COLLAPSED = 0.2
"""The alarm: fewer clusters than this share of them are in use, effectively (5 of 25)."""


@dataclass(frozen=True, kw_only=True)
class VilSegConfig(VilSegSettings):
    """The paper's setting as far as it is known; the rest is guessed after its closest published kin (docs/fidelity.md)."""

    def build(self, encoder: Encoder | None) -> "VilSeg":
        """The method with random weights; no encoder is looked at. Raises InputError where sizes do not fit each other."""
        del encoder
        return VilSeg(self)


class VilSeg(SelfDistilled):
    """Both towers, their projections into the joint space, the contrast's head with its teacher, and the clustering head."""

    def __init__(self, config: VilSegConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image_tower, config.image_size, KEY)
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
        check_sizes(config, self.image.patch_size)
        self.background_threshold: float | None = config.background_threshold
        self.regions_across_windows = not config.components
        self.views = Crops(config.local_crops, config.local_size, config.local_area) if config.vision_weight else None
        self.teacher = frozen_copy(self.image) if config.vision_weight else None
        self.teacher_head = frozen_copy(self.vision_head) if config.vision_weight else None
        self.keep_teacher_state(config.head_out, config.momentum)

    # ------------------------------------------------------------------------------------------------------------ training

    def initialise(self) -> None:
        """Load the pretrained weights that training starts from, where DINO's are asked for."""
        if self.config.init == "dino":
            self.image.load(dino_tag(self.config.image_tower), self.config.image_weights)

    def move_teacher(self, momentum: float) -> None:
        """Move the teacher, where there is one, towards the student."""
        if self.teacher is not None and self.teacher_head is not None:  # both or neither
            follow(self.teacher, self.image, momentum)
            follow(self.teacher_head, self.vision_head, momentum)

    def encode(self, batch: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """`encode_views`, of crops of the loader and a twin drawn here."""
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
        return self.encode_views(Views(whole, local, twin, theta), batch.tokens, shared["centre"])

    def encode_views(self, views: Views, tokens: Tensor, centre: Tensor) -> dict[str, Tensor]:
        """What the losses ask of each image's views and of its text [B, L]. centre: [1, K], of the teacher's logits.

        "text" [B, E], "images" [B, V, E] and, where these losses have a weight, what `encode_crops` and `encode_clusters` say.
        """
        config, batch = self.config, len(tokens)
        text, seen = self.text_projection(self.text(tokens)), self.image(views.whole)
        encoded = {"text": text, "images": torch.stack(torch.split(self.embed(seen), batch), dim=1)}
        if config.vision_weight:
            encoded |= self.encode_crops(seen, views, centre)
        if config.cluster_weight:
            encoded |= self.encode_clusters(seen.patches[:batch], seen.grid, views)
        return encoded

    def combine(self, encoded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The weighted losses: "contrast" (image-text), "vision" and "cluster". Exact over ranks."""
        del batch
        config = self.config
        each = [info_nce(image, encoded["text"], self.log_scale) for image in encoded["images"].unbind(dim=1)]
        losses = {"contrast": torch.stack(each).mean()}
        if config.vision_weight:
            losses["vision"] = config.vision_weight * encoded["vision"].mean()
            if self.training:
                self.centre.copy_(moved_centre(self.centre, encoded["teacher"], config.centre_momentum))
        if config.cluster_weight:
            losses["cluster"] = config.cluster_weight * self.cluster_loss(encoded["counts"], encoded["clusters"])
        return losses

    def embed(self, tokens: Tokens) -> Tensor:
        """Images [B, E] in the joint space."""
        pooled = tokens.patches.mean(dim=1) if self.config.pool == "mean" else tokens.whole
        embedded: Tensor = self.image_projection(pooled)
        return embedded

    def encode_crops(self, student: Tokens, views: Views, centre: Tensor) -> dict[str, Tensor]:
        """DINO's loss of each image's two global views, of which `student` are the tokens, and its small crops.

        "vision" [B], the loss, and "teacher" [B, K], what the teacher says of the image on average.
        """
        assert self.teacher is not None
        assert self.teacher_head is not None
        crops = [self.summary(student)]
        if len(views.local):
            crops.append(self.summary(self.image(views.local)))
        with torch.no_grad():
            teacher = self.teacher_head(self.summary(self.teacher(views.whole)))
        loss = loss_at(self.config, int(self.taken), self.vision_head(torch.cat(crops)), teacher, centre)
        return {"vision": loss, "teacher": torch.stack(teacher.chunk(2)).mean(dim=0)}

    def summary(self, tokens: Tokens) -> Tensor:
        """What of crops the vision-based contrast compares, [B, C]."""
        return tokens.whole if self.config.vision_token == "cls" else tokens.patches.mean(dim=1)

    def encode_clusters(self, patches: Tensor, grid: tuple[int, int], views: Views) -> dict[str, Tensor]:
        """How the first global view's clusters [B, h*w, C] go together with its twin's, warped back onto it.

        "counts" [B, shifts, C, C], IIC's joint counts, and "clusters" [B], how many of them an image has.
        """
        config = self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.cluster_gradient):
            twin = self.image(views.twin).patches
        own, other = (self.assign(x if config.cluster_gradient else x.detach(), grid) for x in (patches, twin))
        back = inverse(views.theta).to(own)
        inside = warp(torch.ones_like(own[:, :1]), back)[:, 0]
        counts = joint_counts(own, warp(other, back), (inside > 0.999).to(own), config.cluster_shifts)
        return {"counts": counts, "clusters": clusters_per_image(own.detach())}

    def cluster_loss(self, counts: Tensor, clusters: Tensor) -> Tensor:
        """IIC's loss of what `encode_clusters` says."""
        config = self.config
        found = agreement_of(counts, weight=config.cluster_lambda, form=config.cluster_form, pool=config.cluster_pool)
        used = perplexity(found.marginal)
        self.diagnostics = {
            "cluster/mutual_information": -found.loss_unweighted.detach(),
            "cluster/perplexity": used,
            "cluster/per_image": clusters.mean(),
            "cluster/collapsed": (used < COLLAPSED * config.clusters).float(),
        }
        return found.loss

    def assign(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Soft assignments [B, clusters, h, w] of patches [B, h*w, C]; in at least float32."""
        logits: Tensor = self.clusters(patches).transpose(1, 2).unflatten(2, grid)
        return logits.to(at_least_float32(logits)).softmax(dim=1)

    # ----------------------------------------------------------------------------------------------------------- inference

    @torch.no_grad()
    def save_towers(self, folder: Path, normalisation: Normalisation) -> dict[str, str]:
        """Write both towers, without their projections into the joint space."""
        image = save_vit(self.image.vit, normalisation, folder / "image_tower")
        text = save_clip_text(self.text.transformer, self.tokenize, folder / "text_tower", quick_gelu=False)
        return {"image_tower": image, "text_tower": text}

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
