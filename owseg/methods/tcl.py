"""TCL: learning to generate text-grounded masks (Cha, Mun, Roh; CVPR 2023, 2212.00785).

A grounder on top of frozen CLIP draws, for any text, the mask of what the text speaks of. It learns from captions alone:
what the mask keeps must match its caption, what other captions' masks keep must not.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg import InputError
from owseg.data import AugmentConfig, Batch
from owseg.encoders import (
    Encoder,
    embed_patches,
    maskclip_features,
    pad_to_multiple,
    pool,
    run_blocks,
    to_map,
    token_grid,
    value_only,
)
from owseg.engine import Phase
from owseg.layers import GroundingDecoder, Projection
from owseg.losses import gather, global_mean, gumbel_sigmoid, info_nce, local_labels, pairwise_nce, total_variation
from owseg.optim import OptimConfig
from owseg.text import TEMPLATES, embed_prompts

GROUNDER = ("decoder.", "projection.", "mask_scale", "mask_shift", "tcl_v_scale", "tcl_f_scale")


@dataclass(frozen=True, kw_only=True)
class Tcl:
    """The paper's recipe (official configuration of the released model)."""

    name: Literal["tcl"] = "tcl"
    """Method name."""
    phases: tuple[Phase, ...] = (Phase(steps=30000, train=GROUNDER), Phase(steps=20000, train=(*GROUNDER, "block.")))
    """Decoder alone first, then the copy of CLIP's last block too."""
    optim: OptimConfig = OptimConfig()
    """Optimiser and schedule."""
    augment: AugmentConfig = AugmentConfig()
    """Training augmentation."""
    tcl_weight: float = 0.1
    """Weight of both text-grounded contrastive losses."""
    area_weight: float = 0.4
    """Weight of both area losses."""
    tv_weight: float = 1.0
    """Weight of both total-variation losses."""
    area_prior: float = 0.4
    """Share of an image that its caption's concepts are expected to cover, 0..1."""
    mask_scale: float = 10.0
    """Where the learned slope of masks over cosine similarity starts."""
    mask_shift: float = -2.5
    """Where the learned offset of masks starts; a mask is one half where similarity is -mask_shift / mask_scale."""
    templates: str = "tcl"
    """Prompt templates of class names: simple or tcl."""
    kp_weight: float = 0.3
    """Share of frozen CLIP's own masks mixed in at inference, 0..1."""
    kp_shift: float = 0.25
    """Cosine similarity at which frozen CLIP's own mask is one half."""
    background_threshold: float = 0.5
    """Mask value below which a pixel is background, on sets that have a background class (0.5 without PAMR)."""

    def __post_init__(self) -> None:
        if self.templates not in TEMPLATES:
            raise InputError(f"templates: {self.templates!r} is none of {', '.join(TEMPLATES)}")
        for field in ("area_prior", "kp_weight", "background_threshold"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"{field}: {getattr(self, field)} is outside 0..1")

    def build(self, encoder: Encoder) -> "TclMethod":
        """The method around a frozen encoder."""
        return TclMethod(self, encoder)


class TclMethod(nn.Module):
    """Frozen CLIP, the grounder (copied last block, decoder, projection) and the learned mask threshold."""

    def __init__(self, config: Tcl, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.clip = encoder.clip.requires_grad_(False)
        self.tokenize = encoder.tokenize
        visual = self.clip.visual
        self.block = deepcopy(visual.transformer.resblocks[-1])
        self.decoder = GroundingDecoder(visual.conv1.out_channels)
        self.projection = Projection(visual)
        self.mask_scale = nn.Parameter(torch.tensor(config.mask_scale))
        self.mask_shift = nn.Parameter(torch.tensor(config.mask_shift))
        self.tcl_v_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))
        self.tcl_f_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))

    def features(self, image: Tensor) -> Tensor:
        """Dense joint-space features [B, E, 4h, 4w] of images [B, 3, H, W] with an h x w token grid (sections 1.3, 1.4)."""
        visual = self.clip.visual
        with torch.no_grad():
            tokens = run_blocks(visual, embed_patches(visual, image), 0, len(visual.transformer.resblocks) - 1)
        tokens = value_only(self.block, tokens)
        projected: Tensor = self.projection(self.decoder(to_map(tokens, token_grid(visual, image))))
        return projected

    def mask_logits(self, features: Tensor, texts: Tensor) -> Tensor:
        """Logits [B, N, H, W] of the masks of N texts [N, E] on features [B, E, H, W]; a mask is their sigmoid."""
        similarity = torch.einsum("behw,ne->bnhw", F.normalize(features, dim=1, eps=1e-6), F.normalize(texts, dim=1, eps=1e-6))
        return self.mask_scale * similarity + self.mask_shift

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The six losses of a batch, weighted: tcl_v, tcl_f, area, area_negative, tv_features, tv_masks (section 3.2)."""
        config = self.config
        with torch.no_grad():
            text = self.clip.encode_text(batch.tokens)
            texts = gather(text)
        features = self.features(batch.image)
        logits = self.mask_logits(features, texts)
        masks = torch.sigmoid(logits)

        rows = torch.arange(len(text), device=text.device)
        positives = local_labels(len(text), text.device)
        own = masks[rows, positives]
        own_mean, all_mean, pairs = own.mean(), masks.mean(), masks.shape[1]
        # The mean over mismatched pairs, without materialising them: all pairs minus the matched ones.
        other_mean = (all_mean * pairs - own_mean) / max(pairs - 1, 1)

        uniform = torch.rand_like(own).clamp_(1e-6, 1 - 1e-6)
        kept = gumbel_sigmoid(logits[rows, positives], uniform)
        return {
            "tcl_v": config.tcl_weight * self.image_level(batch.image, kept, text),
            "tcl_f": config.tcl_weight * pairwise_nce(self.pooled_similarity(features, masks, texts), self.tcl_f_scale),
            "area": config.area_weight * (global_mean(own_mean) - config.area_prior).abs(),
            "area_negative": config.area_weight * global_mean(other_mean).abs(),
            "tv_features": config.tv_weight * total_variation(features),
            "tv_masks": config.tv_weight * total_variation(masks),
        }

    def image_level(self, image: Tensor, kept: Tensor, text: Tensor) -> Tensor:
        """TCL_v: the image with all but its own text's mask set to the mean colour, read by the whole frozen tower.

        image: [B, 3, H, W]; kept: hard masks [B, h, w]; text: [B, E].
        """
        visual = self.clip.visual
        mask = F.interpolate(kept[:, None], size=image.shape[-2:], mode="nearest")
        tokens = embed_patches(visual, image * mask)
        tokens = run_blocks(visual, tokens, 0, len(visual.transformer.resblocks))
        return info_nce(pool(visual, tokens), text, self.tcl_v_scale)

    @staticmethod
    def pooled_similarity(features: Tensor, masks: Tensor, texts: Tensor) -> Tensor:
        """TCL_f's [B, N]: cosine of each text with the image pooled under that text's own mask."""
        pooled = torch.einsum("behw,bnhw->bne", features, masks) / (masks.sum(dim=(2, 3))[..., None] + 1e-6)
        return torch.einsum("bne,ne->bn", F.normalize(pooled, dim=-1, eps=1e-6), F.normalize(texts, dim=-1, eps=1e-6))

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, E]; background is not among `names`."""
        return embed_prompts(self.clip, self.tokenize, names, TEMPLATES[self.config.templates])

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Masks [B, n, H, W] in 0..1 of windows [B, 3, H, W]; with `background` a constant plane comes first (section 5.4)."""
        padded, (top, left) = pad_to_multiple(image, self.clip.visual.patch_size)
        masks = torch.sigmoid(self.mask_logits(self.features(padded), classes))
        if self.config.kp_weight > 0:
            own = torch.einsum("behw,ne->bnhw", F.normalize(maskclip_features(self.clip.visual, padded), dim=1), classes)
            own = torch.sigmoid((own - self.config.kp_shift) * 10)
            own = F.interpolate(own, size=masks.shape[-2:], mode="bilinear", align_corners=False)
            masks = self.config.kp_weight * own + (1 - self.config.kp_weight) * masks
        masks = F.interpolate(masks, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        masks = masks[..., top : top + image.shape[-2], left : left + image.shape[-1]]
        return F.pad(masks, (0, 0, 0, 0, 1, 0), value=self.config.background_threshold) if background else masks
