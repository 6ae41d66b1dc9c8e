"""OVSegmentor: learning open-vocabulary semantic segmentation from image-caption pairs (Xu et al., CVPR 2023, 2301.09121).

Learnable tokens bind an image's patches into a few groups. Captions teach what groups mean: the image must match its caption,
its groups must fill in the entities that were masked in the caption, and groups of one image must pick out the same entity on
another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg import InputError
from owseg.data import Batch
from owseg.encoders import Encoder
from owseg.losses import info_nce, multi_label_nce, temperature
from owseg.methods.ovsegmentor.completion import EntityCompletion
from owseg.methods.ovsegmentor.consistency import mask_consistency
from owseg.methods.ovsegmentor.entity_texts import EntityTexts
from owseg.methods.ovsegmentor.grouping import Binding, GroupingEncoder, owning_group
from owseg.methods.ovsegmentor.heads import ProjectionHead
from owseg.methods.ovsegmentor.image_tower import clip_tower, load_vit, vit_tower
from owseg.methods.ovsegmentor.settings import CLIP, OvSegmentorSettings
from owseg.methods.ovsegmentor.text_tower import Texts, TextTower, bert_tower, clip_text_tower
from owseg.micro_batches import ContrastiveMethod
from owseg.momentum import follow, frozen_copy
from owseg.noise import PlacedDropout
from owseg.normalisation import Normalisation
from owseg.phases import Phase
from owseg.text import prompt_templates


@dataclass(frozen=True, kw_only=True)
class OvSegmentorConfig(OvSegmentorSettings):
    """The paper's recipe (official configuration of the released ViT-B model)."""

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


class OvSegmentor(ContrastiveMethod):
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

    def shared(self, batch: Batch) -> dict[str, Tensor]:
        """How long the longest text is: with all of them at hand, none is padded beyond it."""
        longest = torch.cat([*self._wanted(batch).values()])
        return {"length": torch.tensor(longest.shape[1] if self.official else self.text.trim(longest).shape[1])}

    def encode(self, batch: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the losses ask of each sample's image, partner and texts: before any head, whose batch norm sees all samples."""
        texts = self.read(self._wanted(batch))
        encoded = self.encode_images(batch.image, batch.partner)
        for name, text in texts.items():
            # Completion alone reads tokens; the official form shows batch norms those of all texts.
            kept = text.padded(int(shared["length"])) if self.official or name == "question" else text.sentence_alone()
            encoded |= {f"{name}/{part}": tensor for part, tensor in kept._asdict().items()}
        return encoded

    def combine(self, encoded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The weighted losses of `losses_from`, the texts read by the text tower."""
        names = self._wanted(batch)
        texts = {name: Texts(*(encoded[f"{name}/{part}"] for part in Texts._fields)) for name in names}
        return self.losses_from(encoded, texts, batch.image, batch.texts.get("labels"))

    def _wanted(self, batch: Batch) -> dict[str, Tensor]:
        """The texts that losses of the batch read, each as token ids [B, L]."""
        wanted = {"caption": batch.tokens}
        if self.config.entity_weight:
            wanted |= {name: batch.texts[name] for name in ("question", "answer")}
        if self.config.label_weight:
            wanted["label"] = batch.texts["label"]
        if self.config.mask_weight and batch.partner is not None:
            wanted["prompt"] = batch.texts["prompt"]
        return wanted

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

    def encode_images(self, image: Tensor, partner: Tensor | None) -> dict[str, Tensor]:
        """What losses ask of images [B, 3, H, W] and of other images [B, 3, H, W], which the momentum encoder sees.

        "groups" [B, K, C] and their binding's "q" [B, K, C]; "partner/q" [B, K, C], "partner/k" [B, P, C] and, in the official
        form, "partner/groups" [B, K, C].
        """
        groups = self.encoder(image)
        encoded = {"groups": groups.features, "q": groups.binding.q}
        if self.config.mask_weight and partner is not None:
            assert self.momentum is not None
            self.momentum.train(self.training and self.official)  # the official copy drops paths, too
            with torch.no_grad():
                if self.official and self.training:
                    others = self.momentum(partner)
                    encoded["partner/groups"], binding = others.features, others.binding
                else:
                    binding = self.momentum.bind(partner)
            encoded |= {"partner/q": binding.q, "partner/k": binding.k}
        return encoded

    def losses_from(
        self, images: Mapping[str, Tensor], texts: Mapping[str, Texts], image: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted losses: "contrast", "entity" and "mask" (section 3), the last one where there are partners, and "label".

        images: of `encode_images`; texts: "caption", "question" (entities masked), "answer" (the entities), "prompt" (the
        entity that is shared) and "label" (one of the entities); image: [B, 3, H, W], of which the size is asked alone;
        labels: of `multi_label_nce`. Batch norms see what they see in the official code, in its order, except that only the
        official form shows them what no loss reads.
        """
        config, groups = self.config, images["groups"]
        caption = self.text_head(texts["caption"].sentence)
        self._observe(self.text_head, texts["caption"].features)
        whole = self.image_head(groups.mean(dim=1))
        losses = {"contrast": info_nce(whole, caption, self.log_scale)}
        with torch.no_grad():  # inference projects groups, so the head's statistics must know them
            projected = self.image_head(groups)
        if config.entity_weight:
            losses["entity"] = config.entity_weight * self.entity_loss(groups, texts["question"], texts["answer"])
        if config.label_weight and labels is not None:
            named = self.text_head(texts["label"].sentence)
            losses["label"] = config.label_weight * multi_label_nce(whole, named, labels, self.log_scale)
        if config.mask_weight and "partner/q" in images:
            size = (image.shape[-2], image.shape[-1])
            losses["mask"] = config.mask_weight * self.mask_loss(images, projected, texts["prompt"], size)
        return losses

    def entity_loss(self, groups: Tensor, question: Texts, answer: Texts) -> Tensor:
        """Masked entity completion (section 3.3): the question, filled in by groups [B, K, C], must match the answer."""
        self._observe(self.text_head, question.sentence, question.features)
        wanted = self.text_head(answer.sentence)
        self._observe(self.text_head, answer.features)
        filled = self.completion(question, groups, ignore_padding=self.official)
        return info_nce(self.answer_head(filled), wanted, self.log_scale)

    def mask_loss(self, images: Mapping[str, Tensor], projected: Tensor, prompt: Texts, size: tuple[int, int]) -> Tensor:
        """Cross-image mask consistency (section 3.4), of the groups that the shared entity's prompt speaks of.

        images: of `encode_images`, of images of this size; projected: [B, K, E], the groups in the joint space.
        """
        with torch.no_grad():
            if "partner/groups" in images:
                others = images["partner/groups"]
                self._observe(self.image_head, others.mean(dim=1), others)
            relevance = torch.einsum("bke,be->bk", projected, self.text_head(prompt.sentence))
            self._observe(self.text_head, prompt.features)
        patch = self.encoder.patch_size
        grid = (size[0] // patch, size[1] // patch)
        binding = Binding(images["partner/q"], images["partner/k"])
        return mask_consistency(images["q"], binding, relevance, grid=grid, size=size, official=self.official)

    def _observe(self, head: ProjectionHead, *features: Tensor) -> None:
        """Show a head's batch norm what the official code projects besides what its losses need."""
        if self.official and self.training:
            for some in features:
                head.observe(some)

    # ----------------------------------------------------------------------------------------------------------- inference

    @torch.no_grad()
    def save_towers(self, folder: Path, normalisation: Normalisation) -> dict[str, str]:
        """Write the text tower; the image tower binds patches into groups, and is nobody else's."""
        del normalisation
        return {"text_tower": self.text.save(folder / "text_tower")}

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
