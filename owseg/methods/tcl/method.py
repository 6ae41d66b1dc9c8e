"""TCL: learning to generate text-grounded masks (Cha, Mun, Roh; CVPR 2023, 2212.00785).

A grounder on top of frozen CLIP draws, for any text, the mask of what the text speaks of. It learns from captions alone:
what the mask keeps must match its caption, what other captions' masks keep must not.

With `texts: entities` an image is grounded by two of its caption's entities instead, as co-decomposition does on its image side
(CoDe; Wu et al., CVPR 2024, 2404.04231; its text side and its prompts are not here): a caption names several things, a class
name one. Losses are the paper's over the 2B pairs of an image and one of its texts, but false negatives are left out: in TCL_v,
which sees an image under its pair's own mask, pairs of one entity (an image's two texts are each other's negatives, and so
masks learn to part); in TCL_f and area_negative, which see an image under the other text's mask, texts of whatever the image
has. Where there are fewer entities than two, the caption stands in. The area prior is one text's, here a smaller thing's. Twice
as many masks are drawn, and twice as many images go through the tower of TCL_v.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.data import Batch
from owseg.encoders import (
    Encoder,
    embed_patches,
    pad_to_multiple,
    pool,
    run_block,
    run_blocks,
    to_map,
    token_grid,
    value_only,
)
from owseg.losses import (
    at_least_float32,
    gather,
    global_mean,
    gumbel_sigmoid,
    info_nce,
    local_labels,
    official_pairwise_nce,
    pairwise_nce,
    total_variation,
)
from owseg.methods.tcl.decoder import GroundingDecoder, Projection, checkpointed
from owseg.methods.tcl.entities import TEXTS, EntityTexts, Overlap, overlap
from owseg.methods.tcl.settings import TclSettings
from owseg.micro_batches import ContrastiveMethod
from owseg.noise import uniform_like
from owseg.pamr import pamr
from owseg.text import embed_prompts, prompt_templates


@dataclass(frozen=True, kw_only=True)
class TclConfig(TclSettings):
    """The paper's recipe (official configuration of the released model)."""

    def build(self, encoder: Encoder) -> "Tcl":
        """The method around a frozen encoder."""
        return Tcl(self, encoder)


class MaskStatistics(NamedTuple):
    """What the losses ask of the masks of N texts on B images."""

    mean: Tensor
    """[B, N]: mean of each mask."""
    variation: Tensor
    """[B]: total variation of an image's masks."""
    similarity: Tensor
    """[B, N]: cosine of each text with the image pooled under that text's own mask."""


class Tcl(ContrastiveMethod):
    """Frozen CLIP, the grounder (copied last block, decoder, projection) and the learned mask threshold."""

    def __init__(self, config: TclConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.quirks = config.quirks
        self.clip = encoder.clip.requires_grad_(False)
        self.tokenize = encoder.tokenize
        self.prepare = EntityTexts(self.tokenize) if config.texts == "entities" else None
        visual = self.clip.visual
        self.block = deepcopy(visual.transformer.resblocks[-1])
        self.decoder = GroundingDecoder(visual.conv1.out_channels)
        self.projection = Projection(visual)
        self.mask_scale = nn.Parameter(torch.tensor(config.mask_scale))
        self.mask_shift = nn.Parameter(torch.tensor(config.mask_shift))
        self.tcl_v_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))
        self.tcl_f_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))

    @property
    def background_threshold(self) -> float:
        """Value of the plane that stands for background: the configured one, else the official 0.4 with PAMR, 0.5 without."""
        if self.config.background_threshold is not None:
            return self.config.background_threshold
        return 0.4 if self.config.pamr else 0.5

    @torch.no_grad()
    def trunk(self, image: Tensor) -> Tensor:
        """Tokens [B, 1 + h*w, C] of images [B, 3, H, W] before the frozen tower's last block."""
        visual = self.clip.visual
        return run_blocks(visual, embed_patches(visual, image), 0, len(visual.transformer.resblocks) - 1)

    def ground(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Dense joint-space features [B, E, 4h, 4w] of the trunk's tokens [B, 1 + h*w, C] (sections 1.3, 1.4)."""
        tokens = self.run(value_only, self.block, tokens)
        projected: Tensor = self.projection(self.decoder(to_map(tokens, grid)))
        return projected

    def run(self, reading: Callable[[nn.Module, Tensor], Tensor], block: nn.Module, tokens: Tensor) -> Tensor:
        """A block's tokens, read as `reading` says; backward runs the block again where `checkpoint_blocks` is set."""
        return checkpointed(reading, block, tokens) if self.config.checkpoint_blocks else reading(block, tokens)

    def features(self, image: Tensor) -> Tensor:
        """Dense joint-space features [B, E, 4h, 4w] of images [B, 3, H, W] with an h x w token grid."""
        return self.ground(self.trunk(image), token_grid(self.clip.visual, image))

    def mask_slope(self, features: Tensor) -> Tensor:
        """The learned slope over the features' norms [B, 1, H, W]: what turns their products with unit texts into logits."""
        norms: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=at_least_float32(features))
        return self.mask_scale / norms.clamp_min(1e-6)

    def mask_logits(self, features: Tensor, texts: Tensor, slope: Tensor | None = None) -> Tensor:
        """Logits [B, N, H, W] of the masks of N texts [N, E] on features [B, E, H, W]; a mask is their sigmoid.

        The slope times a cosine similarity, and the offset. slope: `mask_slope(features)`, where it is known already.
        """
        slope = self.mask_slope(features) if slope is None else slope
        products = features.movedim(1, -1) @ F.normalize(texts, dim=1, eps=1e-6).T
        return products.movedim(-1, 1) * slope + self.mask_shift

    def own_logits(self, features: Tensor, slope: Tensor, text: Tensor) -> Tensor:
        """Logits [B, K, H, W] of the masks of matched pairs alone. text: [B, K, E], each image's own."""
        products = torch.einsum("behw,bke->bkhw", features, F.normalize(text, dim=2, eps=1e-6))
        return products * slope + self.mask_shift

    @property
    def texts(self) -> int:
        """K, the texts of an image."""
        return TEXTS if self.config.texts == "entities" else 1

    def shared(self, batch: Batch) -> dict[str, Tensor]:
        """The texts' embeddings: this rank's as "text" [KB, E], image by image, those of all ranks as "texts" [KN, E]."""
        tokens = batch.texts["text"].flatten(0, 1) if self.config.texts == "entities" else batch.tokens
        text = self.clip.encode_text(tokens)
        return {"text": text, "texts": gather(text), "first": torch.tensor(batch.first)}

    def encode(self, batch: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the losses that have a weight ask of each image and its texts."""
        weights = self.config.loss_weights
        first = batch.first - int(shared["first"])
        text = shared["text"].reshape(-1, self.texts, shared["text"].shape[1])[first : first + len(batch.image)]
        features = self.features(batch.image)
        slope = self.mask_slope(features)
        own = self.own_logits(features, slope, text)
        encoded = {"text": text}
        if weights["whole_image"]:  # TCL_f, were all masks 1
            encoded["whole_image"] = features.mean(dim=(2, 3))
        if weights["tcl_v"]:
            noise = uniform_like(own.squeeze(1)).clamp_(1e-6, 1 - 1e-6)  # of a caption as it always was
            kept = gumbel_sigmoid(own, noise.view_as(own))
            encoded["kept_image"] = self.image_level(batch.image, kept)
        if weights["tcl_f"] or weights["area"] or weights["tv"]:
            encoded |= self.encode_masks(features, slope, own, shared["text"], shared["texts"])
        return encoded

    def encode_masks(self, features: Tensor, slope: Tensor, own: Tensor, text: Tensor, texts: Tensor) -> dict[str, Tensor]:
        """What the losses of soft masks ask of each image.

        own: logits [B, K, H, W] of each image's own masks; text: [R, E], this rank's; texts: [N, E], those of all ranks.
        """
        weights = self.config.loss_weights
        own_mean = torch.sigmoid(own).mean(dim=(2, 3), dtype=at_least_float32(own))
        encoded = self.mask_statistics(features, slope, texts)._asdict() | {"own_mean": own_mean}
        if weights["tcl_f"] and self.config.fidelity == "official":
            encoded["pooled"] = self.pool_masks(features, torch.sigmoid(self.mask_logits(features, text, slope)))
        if weights["tv"]:
            encoded["feature_variation"] = total_variation(features)
        return encoded

    def combine(self, encoded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, weighted: tcl_v, tcl_f, area, area_negative, tv_features, tv_masks (section 3.2).

        Those of weight 0 are left out; `whole_image` is there only where it is asked for.
        """
        weights, text = self.config.loss_weights, encoded["text"].flatten(0, 1)
        found = overlap(batch.texts["label"], batch.texts["labels"]) if self.config.texts == "entities" else None
        losses: dict[str, Tensor] = {}
        if weights["whole_image"]:
            image = encoded["whole_image"].repeat_interleave(self.texts, dim=0)
            loss = info_nce(image, text, self.tcl_f_scale, found.of_images if found else None)
            losses["whole_image"] = weights["whole_image"] * loss
        if weights["tcl_v"]:
            image = encoded["kept_image"].flatten(0, 1)
            loss = info_nce(image, text, self.tcl_v_scale, found.of_texts if found else None)
            losses["tcl_v"] = weights["tcl_v"] * loss
        return losses | self.mask_losses(encoded, found)

    def mask_losses(self, encoded: dict[str, Tensor], found: Overlap | None = None) -> dict[str, Tensor]:
        """All losses of soft masks, of what `encode_masks` returns and "text" [B, K, E].

        found: which pairs are no mismatch, where texts are entities; otherwise those with themselves alone.
        """
        config, weights, text = self.config, self.config.loss_weights, encoded["text"].flatten(0, 1)
        losses: dict[str, Tensor] = {}
        if weights["tcl_f"]:
            similarity = encoded["similarity"].repeat_interleave(self.texts, dim=0)
            if config.fidelity == "official":
                loss = official_pairwise_nce(similarity, encoded["pooled"], text, self.tcl_f_scale)
            else:
                loss = pairwise_nce(similarity, self.tcl_f_scale, found.of_images if found else None)
            losses["tcl_f"] = weights["tcl_f"] * loss
        if weights["area"]:
            own_mean, other_mean = self.areas(encoded["own_mean"], encoded["mean"], found)
            losses["area"] = weights["area"] * (own_mean - config.area_prior).abs()
            losses["area_negative"] = weights["area"] * other_mean.abs()
        if weights["tv"]:
            losses["tv_features"] = weights["tv"] * encoded["feature_variation"].mean()
            losses["tv_masks"] = weights["tv"] * encoded["variation"].mean()
        return losses

    def areas(self, own: Tensor, each: Tensor, found: Overlap | None) -> tuple[Tensor, Tensor]:
        """The mean masks of matched and of mismatched pairs, of the means [B, K] of own masks and [B, KN] of all."""
        each = each.repeat_interleave(self.texts, dim=0)
        matched = found.has if found else F.one_hot(local_labels(len(each), each.device), each.shape[1]).bool()
        own_mean, other = own.mean(), each.masked_fill(matched, 0.0).sum()
        count = (~matched).sum(dtype=each.dtype)
        if self.config.fidelity == "exact":
            own_mean, other = global_mean(own_mean), global_mean(other)
            count = global_mean(count) if found else count  # of captions all ranks have as many
        return own_mean, other / count.clamp(min=1e-9)  # there may be none

    def mask_statistics(self, features: Tensor, slope: Tensor, texts: Tensor) -> MaskStatistics:
        """Statistics of the masks of all texts [N, E], `text_chunk` texts at a time; no chunk's masks outlive it."""
        if not self.config.text_chunk:
            return self.read_masks(features, slope, texts)
        chunks = torch.split(texts, self.config.text_chunk)
        parts = [checkpointed(self.read_masks, features, slope, chunk) for chunk in chunks]
        mean, variation, similarity = zip(*parts, strict=True)
        shares = slope.new_tensor([len(chunk) / len(texts) for chunk in chunks])
        return MaskStatistics(
            mean=torch.cat(mean, dim=1),
            variation=(torch.stack(variation, dim=1) * shares).sum(dim=1),
            similarity=torch.cat(similarity, dim=1),
        )

    def read_masks(self, features: Tensor, slope: Tensor, texts: Tensor) -> MaskStatistics:
        """Statistics of the masks of texts [n, E], all held at once; 0 where no loss asks for them."""
        weights = self.config.loss_weights
        masks = torch.sigmoid(self.mask_logits(features, texts, slope))
        mean = masks.mean(dim=(2, 3), dtype=at_least_float32(masks))
        variation = total_variation(masks) if weights["tv"] else mean.new_zeros(len(mean))
        if not weights["tcl_f"]:
            return MaskStatistics(mean, variation, masks.new_zeros(masks.shape[:2]))
        pooled = F.normalize(self.pool_masks(features, masks), dim=-1, eps=1e-6)
        similarity = torch.einsum("bne,ne->bn", pooled, F.normalize(texts, dim=-1, eps=1e-6))
        return MaskStatistics(mean, variation, similarity)

    @staticmethod
    def pool_masks(features: Tensor, masks: Tensor) -> Tensor:
        """Text-grounded embeddings [B, n, E]: features [B, E, H, W] pooled under each of the masks [B, n, H, W]."""
        pooled = torch.einsum("behw,bnhw->bne", features, masks)
        return pooled / (masks.sum(dim=(2, 3))[..., None] + 1e-6)

    def image_level(self, image: Tensor, kept: Tensor) -> Tensor:
        """What TCL_v contrasts, [B, K, E]: images with all but a mask set to the mean colour, read by the whole frozen tower.

        image: [B, 3, H, W]; kept: hard masks [B, K, h, w], of the images' own texts.
        """
        visual = self.clip.visual
        mask = F.interpolate(kept, size=image.shape[-2:], mode="nearest")
        tokens = embed_patches(visual, (image[:, None] * mask[:, :, None]).flatten(0, 1))
        for block in visual.transformer.resblocks:
            tokens = self.run(run_block, block, tokens)
        return pool(visual, tokens).reshape(*mask.shape[:2], -1)

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, E]; background is not among `names`."""
        return embed_prompts(self.clip, self.tokenize, names, prompt_templates(self.config.templates))

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Masks [B, n, H, W] in 0..1 of windows [B, 3, H, W]; with `background` a constant plane comes first (section 5.4)."""
        config, visual = self.config, self.clip.visual
        padded, (top, left) = pad_to_multiple(image, visual.patch_size)
        tokens, grid = self.trunk(padded), token_grid(visual, padded)
        masks = torch.sigmoid(self.mask_logits(self.ground(tokens, grid), classes))
        if config.pamr:
            masks = pamr(padded, masks)
        if config.kp_weight > 0:
            own = self.frozen_masks(tokens, classes, grid)
            own = F.interpolate(own, size=masks.shape[-2:], mode="bilinear", align_corners=False)
            masks = torch.lerp(masks, own, config.kp_weight)
        # Matrix products leave the classes innermost; planes are what sums over windows and upsampling want.
        masks = F.interpolate(masks.contiguous(), size=padded.shape[-2:], mode="bilinear", align_corners=False)
        masks = masks[..., top : top + image.shape[-2], left : left + image.shape[-1]]
        return F.pad(masks, (0, 0, 0, 0, 1, 0), value=self.background_threshold) if background else masks

    def frozen_masks(self, tokens: Tensor, classes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Frozen CLIP's own masks [B, n, h, w], from the trunk's tokens [B, 1 + h*w, C] read as MaskCLIP does."""
        visual = self.clip.visual
        tokens = visual.ln_post(value_only(visual.transformer.resblocks[-1], tokens)) @ visual.proj
        similarity = F.normalize(tokens, dim=-1) @ F.normalize(classes, dim=-1).T
        return torch.sigmoid((to_map(similarity, grid) - self.config.kp_shift) * 10)
