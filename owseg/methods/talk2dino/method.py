"""Talk2DINO: talking to self-supervised features (Barsellotti et al., ICCV 2025, 2411.19331).

A frozen self-supervised ViT tells things apart, but knows no words; CLIP's frozen text tower knows words, but not where things
are. A map of one million parameters takes texts to the ViT's patches. It learns from captions: of a caption's image, the head
of the ViT's last block that looks at what the caption tells of stands for the image (section 3.3). A pixel is then named by
the cosine of its patch with mapped class names.

Written from the paper and from recorded numbers of the official code, which has no licence.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.data import Batch
from owseg.encoders import Encoder, pad_to_multiple
from owseg.exporting.folders import save_vit
from owseg.features import FrozenFeatures
from owseg.methods.talk2dino.attention import head_embeddings, heads_for
from owseg.methods.talk2dino.cleaning import cleaned
from owseg.methods.talk2dino.contrast import caption_contrast, entity_contrast
from owseg.methods.talk2dino.entity_prompts import EntityPrompts
from owseg.methods.talk2dino.image_tower import ImageTower
from owseg.methods.talk2dino.official import LAYOUT
from owseg.methods.talk2dino.settings import Talk2DinoSettings
from owseg.normalisation import Normalisation
from owseg.phases import augmentations
from owseg.published_layout import Layout
from owseg.stored_features import FeatureShapes
from owseg.text import ReadTexts, prompt_templates
from owseg.vit import refuse_partial_patches


@dataclass(frozen=True, kw_only=True)
class Talk2DinoConfig(Talk2DinoSettings):
    """Texts mapped to the patches of a frozen self-supervised ViT."""

    @property
    def official_layout(self) -> Layout:
        """The released maps' names."""
        return LAYOUT

    def build(self, encoder: Encoder) -> "Talk2Dino":
        """The method around CLIP's frozen text tower, its image tower with random weights."""
        return Talk2Dino(self, encoder)


class Projection(nn.Module):
    """The map from texts to patches: linear, tanh, linear."""

    def __init__(self, text: int, image: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(text, image), nn.Linear(image, image)

    def forward(self, texts: Tensor) -> Tensor:
        """[..., D] → [..., C]; neither side is normalised."""
        mapped: Tensor = self.second(torch.tanh(self.first(texts)))
        return mapped


class Talk2Dino(FrozenFeatures):
    """Both frozen towers, and the map between them."""

    prepare: EntityPrompts | None

    def __init__(self, config: Talk2DinoConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.clip, self.tokenize = encoder.clip.requires_grad_(False), encoder.tokenize
        self.image = ImageTower(config)
        self.patch_size = self.image.patch_size
        for key, augment in augmentations(config.phases, config.augment):
            refuse_partial_patches(augment.size, self.patch_size, f"{self.image.key}.{key}.size")
        self.projection = Projection(encoder.clip.text_projection.shape[1], self.image.width)
        self.prepare = self.prepare_with(self.tokenize)
        self.background_threshold: float | None = config.background_threshold

    def initialise(self) -> None:
        """Load the image tower's weights."""
        self.image.load(self.config.image_weights)

    # ------------------------------------------------------------------------------------------------------------ training

    def image_features(self, image: Tensor) -> Tensor:
        """An embedding for each head [B, M, C] of images [B, 3, H, W]."""
        seen = self.image(image)
        return head_embeddings(seen.attention, seen.patches)

    def text_features(self, tokens: Tensor) -> Tensor:
        """CLIP's features [n, D] of token ids [n, L]."""
        found: Tensor = self.clip.encode_text(tokens)
        return found

    @property
    def feature_shapes(self) -> FeatureShapes:
        """Heads [M, C] of an image, and D."""
        return FeatureShapes((self.image.heads, self.image.width), (self.projection.first.in_features,))

    def texts_of(self, captions: Sequence[str], entities: Sequence[Sequence[str]]) -> Iterable[str]:
        """Captions and, where heads are chosen by entity, every prompt of an entity: which are drawn is random."""
        return [*captions, *(self.prepare.possible(entities) if self.prepare else [])]

    @property
    def text_settings(self) -> tuple[str, ...]:
        """What chooses heads."""
        return (self.config.head,)

    def prepare_with(self, read: ReadTexts) -> EntityPrompts | None:
        """Prompts of entities, where these choose heads."""
        return EntityPrompts(read) if self.config.head == "entity" else None

    def encode(self, batch: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mapped texts "text" [B, M, C], the caption or entities, and of the image the head that each chooses, "image"."""
        del shared
        heads = self.features_of_images(batch)
        tokens = batch.texts["entity"] if self.config.head == "entity" else batch.tokens[:, None]
        texts = self.features_of_texts(tokens.flatten(0, 1), batch)
        mapped = self.projection(texts).reshape(*tokens.shape[:2], -1)
        return {"text": mapped, "image": heads_for(mapped.detach(), heads)}

    def combine(self, encoded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"contrast": symmetric InfoNCE over the global batch}."""
        image, text = encoded["image"], encoded["text"]
        if self.config.head == "entity":
            return {"contrast": entity_contrast(image, text, batch.texts["labels"])}
        return {"contrast": caption_contrast(image[:, 0], text[:, 0], official=self.config.fidelity == "official")}

    # ----------------------------------------------------------------------------------------------------------- inference

    def save_towers(self, folder: Path, normalisation: Normalisation) -> dict[str, str]:
        """Write the image tower; the CLIP that reads texts has a place of its own."""
        return {"image_tower": save_vit(self.image.vit, normalisation, folder / "image_tower")}

    @torch.no_grad()
    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, C] among the patches; background is not among `names`."""
        templates = prompt_templates(self.config.templates)
        prompts = [template.format(name) for name in names for template in templates]
        tokens = self.tokenize(prompts).to(self.projection.first.weight.device)
        texts = torch.cat([self.clip.encode_text(some) for some in torch.split(tokens, 1024)])
        return self.map_classes(texts.reshape(len(names), len(templates), -1))

    def map_classes(self, texts: Tensor) -> Tensor:
        """Unit class embeddings [n, C] of CLIP's features [n, T, D] of each class's prompts, which are averaged as they are."""
        return F.normalize(self.projection(texts.mean(dim=1)), dim=-1, eps=1e-6)

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Scores [B, n, H, W] of windows [B, 3, H, W]; with `background` a constant plane comes first: [B, 1 + n, H, W]."""
        padded, (top, left) = pad_to_multiple(image, (self.image.patch_size, self.image.patch_size))
        seen = self.image(padded)
        scores = self.grid_scores(seen.patches, seen.attention, classes, self.config.clean)
        planes = scores.reshape(*scores.shape[:2], *seen.grid)
        scores = F.interpolate(planes, size=padded.shape[-2:], mode="bilinear", align_corners=True)
        scores = scores[..., top : top + image.shape[-2], left : left + image.shape[-1]]
        return F.pad(scores, (0, 0, 0, 0, 1, 0), value=self.config.background_threshold) if background else scores

    @staticmethod
    def grid_scores(patches: Tensor, attention: Tensor, classes: Tensor, clean: float) -> Tensor:
        """Scores [B, n, P] of patches [B, P, C]: sigmoids of the cosines with classes [n, C], cleaned by weight `clean`."""
        scores = (classes @ F.normalize(patches, dim=-1).transpose(1, 2)).sigmoid()
        return cleaned(scores, attention, patches, classes, clean) if clean else scores
