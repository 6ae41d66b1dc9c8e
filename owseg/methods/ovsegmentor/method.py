"""OVSegmentor: learning open-vocabulary semantic segmentation from image-caption pairs (Xu et al., CVPR 2023, 2301.09121).

Learnable tokens bind an image's patches into a few groups. Captions teach what groups mean: the image must match its caption,
its groups must fill in the entities that were masked in the caption, and groups of one image must pick out the same entity on
another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg import InputError
from owseg.data import AugmentConfig, Batch
from owseg.encoders import Encoder, EncoderConfig
from owseg.fields import check_range, setting
from owseg.losses import info_nce, multi_label_nce, temperature
from owseg.method_config import TrainableConfig
from owseg.methods.ovsegmentor.completion import EntityCompletion
from owseg.methods.ovsegmentor.consistency import mask_consistency
from owseg.methods.ovsegmentor.entity_texts import EntityTexts
from owseg.methods.ovsegmentor.grouping import GroupingEncoder, Groups, owning_group
from owseg.methods.ovsegmentor.heads import ProjectionHead
from owseg.methods.ovsegmentor.image_tower import clip_tower, load_vit, vit_tower
from owseg.methods.ovsegmentor.official import LAYOUT, OFFICIAL_THRESHOLDS
from owseg.methods.ovsegmentor.text_tower import Texts, TextTower, bert_tower, clip_text_tower
from owseg.momentum import follow, frozen_copy
from owseg.noise import PlacedDropout
from owseg.optim import OptimConfig, Quirks
from owseg.phases import Phase, scheduled_phases
from owseg.published_layout import Layout
from owseg.text import check_templates, prompt_templates
from owseg.trainable import TrainableMethod

CLIP = "clip"
"""As the name of a tower: the run's CLIP."""
VISION = ("encoder.", "image_head.", "text_head.", "completion.", "answer_head.", "log_scale")
STAGE_1 = OptimConfig(batch_size=4096, lr=6.4e-4, lr_batch=4096, min_lr=1.6e-4, eps=1e-8,
                      schedule="cosine_unshifted", warmup=1953, warmup_lr=1.6e-5)  # fmt: skip
STAGE_2 = replace(STAGE_1, batch_size=1024, lr=1e-5, min_lr=1e-6, warmup_lr=4e-6, warmup=0)


@dataclass(frozen=True, kw_only=True)
class OvSegmentorConfig(TrainableConfig):
    """The paper's recipe (official configuration of the released ViT-B model); epochs are of 4 million pairs."""

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

    def build(self, encoder: Encoder | None) -> "OvSegmentor":
        """The method with random weights, but for towers that are copies of the run's encoder."""
        if self.uses_clip and encoder is None:
            raise InputError(f"{self.name}: a tower is the run's CLIP, and there is none")
        of_clip, of_vit = (
            partial(tower, heads=self.heads, tokens=self.tokens, groups=self.groups, drop_path=self.drop_path)
            for tower in (clip_tower, vit_tower)
        )
        return OvSegmentor(
            self,
            of_clip(encoder.clip.visual) if encoder and self.image_tower == CLIP else of_vit(self.image_tower),
            clip_text_tower(encoder) if encoder and self.text_tower == CLIP else bert_tower(self.text_tower),
        )


class OvSegmentor(TrainableMethod):
    """Both towers, the heads that lead into the joint space, entity completion, and the momentum copy of the image tower."""

    background_threshold: float | None = None
    """No constant decides on background: `segment` draws its plane itself."""
    regions_across_windows = False
    """Each window has groups of its own."""

    def __init__(self, config: OvSegmentorConfig, image_tower: GroupingEncoder, text_tower: TextTower) -> None:
        super().__init__()
        self.config = config
        self.quirks = config.quirks
        self.official = config.fidelity == "official"
        self.tokenize = text_tower.tokenize
        self.encoder = image_tower
        self.text = text_tower
        self.image_head = ProjectionHead(image_tower.width, config.hidden, config.joint, synced=True)
        self.text_head = ProjectionHead(text_tower.width, config.hidden, config.joint, synced=True)
        self.completion = EntityCompletion(image_tower.width, image_tower.heads, text_tower.width)
        self.answer_head = ProjectionHead(image_tower.width, config.hidden, config.joint, synced=not self.official)
        self.log_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))
        self.momentum = frozen_copy(image_tower) if any(phase.partners for phase in config.phases) else None
        self.extra_state_prefixes = ("momentum.",) if self.momentum is not None else ()
        shares_entities = config.mask_weight and self.momentum is not None
        self.prepare = (
            EntityTexts(text_tower.tokenize, text_tower.mask_word, official=self.official, labels=config.label_weight > 0)
            if config.entity_weight or config.label_weight or shares_entities
            else None
        )

    # ------------------------------------------------------------------------------------------------------------ training

    def initialise(self) -> None:
        """Load the pretrained weights that training starts from."""
        if self.config.image_tower != CLIP:
            load_vit(self.encoder, self.config.image_tower, self.config.image_weights)
        self.text.load()

    @torch.no_grad()
    def begin_phase(self, phase: Phase) -> None:
        """The momentum encoder starts out as a copy of the encoder."""
        if phase.partners and self.momentum is not None:
            self.momentum.load_state_dict(self.encoder.state_dict())

    @torch.no_grad()
    def after_step(self) -> None:
        """The momentum encoder follows the encoder."""
        if self.momentum is not None:
            follow(self.momentum, self.encoder, self.config.momentum)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted losses of `losses_from`, the texts read by the text tower."""
        wanted = ["caption"]
        if self.config.entity_weight:
            wanted += ["question", "answer"]
        if self.config.label_weight:
            wanted.append("label")
        if self.config.mask_weight and batch.partner is not None:
            wanted += ["prompt"]
        tokens = {"caption": batch.tokens, **batch.texts}
        texts = self.read({name: tokens[name] for name in wanted})
        return self.losses_from(batch.image, texts, batch.partner, tokens.get("labels"))

    def read(self, tokens: Mapping[str, Tensor]) -> dict[str, Texts]:
        """What the text tower makes of several batches of B texts, each as token ids [B, L].

        Padding is left out, except in the official form, where it has a say in batch norms and completion.
        """
        learns = any(parameter.requires_grad for parameter in self.text.parameters())
        self.text.train(self.training and (learns or self.official))  # the official frozen tower still drops out
        joined = torch.cat([*tokens.values()])
        with PlacedDropout():
            texts = self.text(joined) if self.official else self.text.forward_bucketed(joined)
        parts = zip(*(part.chunk(len(tokens)) for part in texts), strict=True)
        return {name: Texts(*part) for name, part in zip(tokens, parts, strict=True)}

    def losses_from(
        self, image: Tensor, texts: Mapping[str, Texts], partner: Tensor | None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted losses: "contrast", "entity" and "mask" (section 3), the last one where there are partners, and "label".

        image: [B, 3, H, W]; texts: "caption", "question" (entities masked), "answer" (the entities), "prompt" (the entity that
        is shared) and "label" (one of the entities); partner: [B, 3, H, W], other images; labels: of `multi_label_nce`. Batch
        norms see what they see in the official code, in its order, except that only the official form shows them what no loss
        reads.
        """
        config = self.config
        caption = self.text_head(texts["caption"].sentence)
        self._observe(self.text_head, texts["caption"].features)
        groups = self.encoder(image)
        whole = self.image_head(groups.features.mean(dim=1))
        losses = {"contrast": info_nce(whole, caption, self.log_scale)}
        with torch.no_grad():  # inference projects groups, so the head's statistics must know them
            projected = self.image_head(groups.features)
        if config.entity_weight:
            losses["entity"] = config.entity_weight * self.entity_loss(groups, texts["question"], texts["answer"])
        if config.label_weight and labels is not None:
            named = self.text_head(texts["label"].sentence)
            losses["label"] = config.label_weight * multi_label_nce(whole, named, labels, self.log_scale)
        if config.mask_weight and partner is not None:
            losses["mask"] = config.mask_weight * self.mask_loss(groups, projected, texts["prompt"], partner)
        return losses

    def entity_loss(self, groups: Groups, question: Texts, answer: Texts) -> Tensor:
        """Masked entity completion (section 3.3): the question, filled in by the image's groups, must match the answer."""
        self._observe(self.text_head, question.sentence, question.features)
        wanted = self.text_head(answer.sentence)
        self._observe(self.text_head, answer.features)
        filled = self.completion(question, groups.features, ignore_padding=self.official)
        return info_nce(self.answer_head(filled), wanted, self.log_scale)

    def mask_loss(self, groups: Groups, projected: Tensor, prompt: Texts, partner: Tensor) -> Tensor:
        """Cross-image mask consistency (section 3.4), of the groups that the shared entity's prompt speaks of.

        projected: [B, K, E], the groups in the joint space.
        """
        assert self.momentum is not None
        self.momentum.train(self.training and self.official)  # the official copy drops paths, too
        with torch.no_grad():
            if self.official and self.training:
                others = self.momentum(partner)
                self._observe(self.image_head, others.features.mean(dim=1), others.features)
                binding = others.binding
            else:
                binding = self.momentum.bind(partner)
            relevance = torch.einsum("bke,be->bk", projected, self.text_head(prompt.sentence))
            self._observe(self.text_head, prompt.features)
        size = (partner.shape[-2], partner.shape[-1])
        return mask_consistency(groups.binding.q, binding, relevance, grid=groups.grid, size=size, official=self.official)

    def _observe(self, head: ProjectionHead, *features: Tensor) -> None:
        """Show a head's batch norm what the official code projects besides what its losses need."""
        if self.official and self.training:
            for some in features:
                head.observe(some)

    # ----------------------------------------------------------------------------------------------------------- inference

    @torch.no_grad()
    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, E]; background is not among `names`."""
        templates = prompt_templates(self.config.templates)
        prompts = [template.format(name) for name in names for template in templates]
        tokens = self.text.trim(self.tokenize(prompts).to(self.log_scale.device))
        sentences = torch.cat([self.text_head(self.text(some).sentence) for some in torch.split(tokens, 256)])
        return F.normalize(sentences.reshape(len(names), len(templates), -1).mean(dim=1), dim=-1)

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Scores [B, n, H, W] of windows [B, 3, H, W]; with `background` its plane, 0 or 1, comes first: [B, 1 + n, H, W].

        Each pixel goes to the group whose soft map is highest there, and has that group's scores. The encoder is run once.
        What does not fill a patch at the bottom and the right is not looked at, and maps are stretched over it (official); an
        image smaller than a patch is padded to one.
        """
        height, width = image.shape[-2:]
        groups = self.encoder(self._padded(image))
        scores = self.score(groups.features, classes)
        if background:
            best = scores.amax(dim=2)
            # Never more than the best group has: one group at least is foreground in every window.
            threshold = best.amax(dim=1, keepdim=True).clamp(max=self.config.background_threshold)
            scores = torch.cat([(best < threshold).to(scores)[..., None], scores], dim=2)
        owner = owning_group(groups.binding, groups.grid, (height, width)).flatten(1)[:, None].expand(-1, scores.shape[2], -1)
        return scores.transpose(1, 2).gather(2, owner).reshape(*scores.shape[::2], height, width)

    @torch.no_grad()
    def regions(self, image: Tensor, classes: Tensor) -> Tensor:
        """The group [B, H, W] int64 that each pixel of windows [B, 3, H, W] goes to in `segment`; names have no say."""
        del classes
        padded = self._padded(image)
        grid = (padded.shape[-2] // self.encoder.patch_size, padded.shape[-1] // self.encoder.patch_size)
        return owning_group(self.encoder.bind(padded), grid, (image.shape[-2], image.shape[-1]))

    def _padded(self, image: Tensor) -> Tensor:
        """The image [B, 3, H, W], filled up with zeros at the bottom and the right where it is smaller than a patch."""
        (height, width), patch = image.shape[-2:], self.encoder.patch_size
        return F.pad(image, (0, max(patch - width, 0), 0, max(patch - height, 0)))

    def score(self, features: Tensor, classes: Tensor) -> Tensor:
        """The classes' scores [B, K, n] in each group of features [B, K, C].

        A group's softmax over all classes, times its softmax over the few that the whole image fits best, 0 for the others.
        """
        scale = temperature(self.log_scale)
        each, whole = (scale * F.normalize(self.image_head(x), dim=-1) @ classes.T for x in (features, features.mean(dim=1)))
        shown = whole.topk(min(self.config.top_classes, len(classes)), dim=1).indices
        hidden = torch.ones_like(whole, dtype=torch.bool).scatter_(1, shown, False)
        scores: Tensor = each.softmax(dim=-1) * each.masked_fill(hidden[:, None], -torch.inf).softmax(dim=-1)
        return scores
