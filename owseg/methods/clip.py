"""CLIP (Radford et al., 2103.00020): contrastive pretraining of both towers on the corpus.

In real use open_clip's published weights take its place; a corpus that has none of its own, such as the miniature world's,
trains it first.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from owseg.augmentation import AugmentConfig
from owseg.data import Batch
from owseg.encoders import Encoder, EncoderConfig
from owseg.fields import setting
from owseg.losses import info_nce
from owseg.method_config import Tower, TrainableConfig
from owseg.micro_batches import ContrastiveMethod
from owseg.optim import OptimConfig
from owseg.phases import Phase


@dataclass(frozen=True, kw_only=True)
class ClipConfig(TrainableConfig):
    """Contrastive pretraining of the run's CLIP."""

    name: Literal["clip"] = "clip"
    """Method name."""
    phases: tuple[Phase, ...] = setting((Phase(steps=50000, train=("clip.",)),), training_only=True)
    """Training phases."""
    optim: OptimConfig = setting(
        OptimConfig(lr=5e-4, min_lr=0.0, lr_batch=0, warmup=2000, weight_decay=0.2, betas=(0.9, 0.98)), training_only=True
    )
    """Optimiser and schedule."""
    augment: AugmentConfig = setting(AugmentConfig(min_area=0.5, rand_augment="", erase=0.0), training_only=True)
    """Training augmentation."""

    @property
    def tower(self) -> Tower:
        """The run's CLIP."""
        return Tower("CLIP", "clip.", "encoder.safetensors", "encoder.pretrained=pretrain")

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        del encoder
        return "text"

    def build(self, encoder: Encoder) -> "Clip":
        """The method around an encoder whose weights it will train."""
        return Clip(encoder)


class Clip(ContrastiveMethod):
    """Both towers of CLIP, trained to match images with their captions."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.clip, self.tokenize = encoder.clip, encoder.tokenize

    def encode(self, batch: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images and captions [B, E] in the joint space."""
        del shared
        return {"image": self.clip.encode_image(batch.image), "text": self.clip.encode_text(batch.tokens)}

    def combine(self, encoded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"contrastive": symmetric InfoNCE over the global batch, with CLIP's learned temperature}."""
        del batch
        return {"contrastive": info_nce(encoded["image"], encoded["text"], self.clip.logit_scale)}
