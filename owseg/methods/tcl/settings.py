"""TCL's settings: the paper's recipe."""

from dataclasses import dataclass
from typing import Literal

from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.encoders import EncoderConfig
from owseg.fields import check_range, setting
from owseg.method_config import TrainableConfig
from owseg.methods.tcl.official import LAYOUT
from owseg.optim import OptimConfig, Quirks
from owseg.phases import Phase
from owseg.published_layout import Layout
from owseg.text import check_templates

GROUNDER = ("decoder.", "projection.", "mask_scale", "mask_shift", "tcl_v_scale", "tcl_f_scale")


@dataclass(frozen=True, kw_only=True)
class TclSettings(TrainableConfig):
    """What the recipe names."""

    name: Literal["tcl"] = "tcl"
    """Method name."""
    phases: tuple[Phase, ...] = setting(
        (Phase(steps=30000, train=GROUNDER), Phase(steps=20000, train=(*GROUNDER, "block."))), training_only=True
    )
    """Decoder alone first, then the copy of CLIP's last block too."""
    optim: OptimConfig = setting(OptimConfig(), training_only=True)
    """Optimiser and schedule."""
    augment: AugmentConfig = setting(AugmentConfig(), training_only=True)
    """Training augmentation."""
    texts: Literal["caption", "entities"] = setting("caption", training_only=True)
    """Texts to be grounded: each caption (the paper), or two entities stored with it (CoDe's idea, 2404.04231)."""
    fidelity: Literal["exact", "official"] = setting("exact", training_only=True)
    """What losses and engines do where the official code has quirks over ranks and with scalars: exact or official."""
    tcl_weight: float = setting(0.1, training_only=True)
    """Weight of both text-grounded contrastive losses."""
    tcl_v_weight: float | None = setting(None, training_only=True)
    """Weight of the one on images alone; null = tcl_weight. A loss of weight 0 is left out, here and below."""
    tcl_f_weight: float | None = setting(None, training_only=True)
    """Weight of the one on features alone; null = tcl_weight."""
    whole_image_weight: float = setting(0.0, training_only=True)
    """Weight of the contrast of images without a mask: where the loss ablation begins; the method itself is without."""
    area_weight: float = setting(0.4, training_only=True)
    """Weight of both area losses."""
    tv_weight: float = setting(1.0, training_only=True)
    """Weight of both total-variation losses."""
    area_prior: float = setting(0.4, training_only=True)
    """Share of an image that its caption's concepts are expected to cover, 0..1."""
    mask_scale: float = setting(10.0, training_only=True)
    """Where the learned slope of masks over cosine similarity starts."""
    mask_shift: float = setting(-2.5, training_only=True)
    """Where the learned offset of masks starts; a mask is one half where similarity is -mask_shift / mask_scale."""
    templates: str = setting("tcl", shown=True, scores_only=True)
    """Prompt templates of class names: plain, simple, imagenet7, tcl (those 7 and 2 more), maskclip (5) or imagenet80."""
    kp_weight: float = setting(0.3, shown=True, scores_only=True)
    """Share of frozen CLIP's own masks mixed in at inference, 0..1."""
    kp_shift: float = setting(0.25, scores_only=True)
    """Cosine similarity at which frozen CLIP's own mask is one half."""
    text_chunk: int = setting(64, training_only=True, how=True)
    """Texts whose masks are held at once in training; 0 = all. Results are the same, memory grows with it."""
    checkpoint_blocks: bool = setting(True, training_only=True, how=True)
    """Keep only the inputs of transformer blocks that gradients cross in training, and run the blocks again in backward."""
    pamr: bool = setting(False, shown=True, scores_only=True)
    """Draw masks to the image's edges at inference (PAMR): 3.3 points of average mIoU in the paper."""
    background_threshold: float | None = setting(None, scores_only=True)
    """Mask value below which a pixel is background, 0..1, on sets that have that class; null = 0.4 with PAMR, 0.5 without."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        check_range(self, "area_prior", "kp_weight", "background_threshold", least=0, most=1)
        weights = self.loss_weights
        check_range(self, "tcl_weight", *(f"{name}_weight" for name in weights), "text_chunk", least=0)
        if self.texts == "entities" and self.fidelity == "official":
            raise InputError("fidelity: the official form knows no texts=entities; set fidelity=exact, or texts=caption")
        if not any(weights.values()):
            raise InputError(
                "tcl_weight: all losses have weight 0, so there is nothing to learn from; give one of them a weight"
            )

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, those of area and total variation under one name."""
        v, f = (self.tcl_weight if own is None else own for own in (self.tcl_v_weight, self.tcl_f_weight))
        whole, area, tv = self.whole_image_weight, self.area_weight, self.tv_weight
        return {"whole_image": whole, "tcl_v": v, "tcl_f": f, "area": area, "tv": tv}

    @property
    def quirks(self) -> Quirks:
        """What engines must reproduce of the official code."""
        return Quirks(decay_scalars=self.fidelity == "official")

    @property
    def official_layout(self) -> Layout:
        """The names in `tcl.pth`."""
        return LAYOUT

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        return encoder.supervision
