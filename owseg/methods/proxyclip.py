"""ProxyCLIP: proxy attention improves CLIP (Lan et al., ECCV 2024, 2408.04883), with no training at all.

Frozen CLIP says what is at a patch, but mixes up where; a self-supervised ViT tells which patches belong together, but not what
they are. So CLIP's last block reads its values with an attention that is not its own: how alike the ViT's patches are.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from owseg.dense_clip import DenseClip
from owseg.encoders import Encoder, EncoderConfig, embed_patches, run_blocks, token_grid
from owseg.fields import check_range, setting
from owseg.frozen_tower import FrozenTower, TowerSettings
from owseg.text import check_templates


@dataclass(frozen=True, kw_only=True)
class ProxyClipConfig(TowerSettings):
    """CLIP's values, gathered by the affinity of a self-supervised ViT's patches (the paper's DINO ViT-B/8)."""

    name: Literal["proxyclip"] = "proxyclip"
    """Method name."""
    image_tower: str = "vit_base_patch8_224.dino"
    """timm's name of a ViT, with the tag of its weights."""
    shift: float = setting(1.2, scores_only=True)
    """Of the mean similarity of patches, how much is subtracted (the paper's beta)."""
    scale: float = setting(3.0, scores_only=True)
    """What the rest is multiplied with before the softmax (the paper's gamma)."""
    templates: str = setting("tcl", shown=True, scores_only=True)
    """Prompt templates of class names: plain, simple, imagenet7, tcl (those 7 and 2 more), maskclip (5) or imagenet80."""
    unit_prompts: bool = setting(False, shown=True, scores_only=True)
    """Normalise each prompt's embedding before their mean (CLIP, ProxyCLIP); false: the mean alone (TCL)."""
    background_threshold: float = setting(0.25, scores_only=True)
    """Cosine similarity below which a pixel is background, on sets that have a background class, -1..1."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        check_range(self, "background_threshold", least=-1, most=1)
        check_range(self, "scale", least=0)

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        return f"{encoder.supervision}; {self.tower_supervision}"

    def build(self, encoder: Encoder) -> "ProxyClip":
        """The method around a frozen encoder, with the image tower's weights. Raises InputError where these cannot be had."""
        method = ProxyClip(self, encoder)
        method.image.load(self.image_weights)
        return method


class ProxyClip(DenseClip):
    """Both frozen towers: CLIP, and the ViT whose patches say what belongs together."""

    def __init__(self, config: ProxyClipConfig, encoder: Encoder) -> None:
        """The image tower has random weights."""
        super().__init__(config, encoder)
        self.image, self.shift, self.scale = FrozenTower(config), config.shift, config.scale

    def features(self, image: Tensor) -> Tensor:
        """Joint-space features [B, E, h, w] of images [B, 3, H, W], H and W multiples of CLIP's patch size."""
        visual, grid = self.clip.visual, token_grid(self.clip.visual, image)
        blocks = visual.transformer.resblocks
        tokens = run_blocks(visual, embed_patches(visual, image), 0, len(blocks) - 1)
        attention = proxy_attention(self.tower_patches(image, grid), self.shift, self.scale)
        read = visual.ln_post(read_values(blocks[-1], tokens, attention)) @ visual.proj
        features: Tensor = read.transpose(1, 2).unflatten(2, grid)
        return features

    def tower_patches(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """The ViT's patches [B, h*w, C] on CLIP's grid; of another grid, bilinearly between its own.

        Windows that are no whole patches are stretched to the nearest size that is.
        """
        patch = self.image.patch_size
        whole = tuple(max(round(side / patch), 1) * patch for side in image.shape[-2:])
        if whole != image.shape[-2:]:
            image = F.interpolate(image, size=whole, mode="bilinear", align_corners=False)
        patches = self.image.patches(image)
        if (own := self.image.grid(image)) == grid:
            return patches
        planes = patches.transpose(1, 2).reshape(len(patches), -1, *own)
        return F.interpolate(planes, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def proxy_attention(patches: Tensor, shift: float, scale: float) -> Tensor:
    """How much each patch reads from each, [B, P, P], rows that sum to 1, of a ViT's patches [B, P, C].

    The paper's: cosines A; scale * (A - shift * mean of the image's A); what is below 0 is left out; softmax. Where nothing is
    left, as in an image of one colour, a patch reads itself (our own).
    """
    unit = F.normalize(patches, dim=-1)
    alike = unit @ unit.transpose(1, 2)
    alike = scale * (alike - shift * alike.mean(dim=(1, 2), keepdim=True))
    own = torch.eye(patches.shape[1], dtype=torch.bool, device=patches.device)
    return alike.masked_fill((alike < 0) & ~own, -torch.inf).softmax(dim=-1)


def read_values(block: Any, tokens: Tensor, attention: Tensor) -> Tensor:
    """A CLIP block's values of patches [B, P, C], read with one attention [B, P, P] for all heads; neither residual nor MLP.

    tokens: [B, 1 + P, C] that enter the block, the class token first: it is not read.
    """
    attn, width = block.attn, tokens.shape[-1]
    value = F.linear(block.ln_1(tokens[:, 1:]), attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :])
    read: Tensor = block.ls_1(attn.out_proj(attention.to(value) @ value))
    return read
