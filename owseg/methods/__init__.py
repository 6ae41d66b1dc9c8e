"""The methods. Adding one = one file here and one line in `Methods`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from owseg import InputError
from owseg.encoders import Encoder, EncoderConfig, load_encoder
from owseg.fit import learned_state
from owseg.methods.chance import ChanceConfig
from owseg.methods.clip import Clip, ClipConfig
from owseg.methods.ovsegmentor import OvSegmentor, OvSegmentorConfig
from owseg.methods.tcl import Tcl, TclConfig
from owseg.methods.vilseg import VilSeg, VilSegConfig
from owseg.methods.zero_shot import ZeroShotConfig
from owseg.published import load_trained


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The registry: a field is a method by its name in configs, results and MLflow."""

    clip: ClipConfig = ClipConfig()
    """Contrastive pretraining of the encoder, where `encoder.pretrained` is "pretrain"."""
    chance: ChanceConfig = ChanceConfig()
    """Random labels."""
    plain_clip: ZeroShotConfig = ZeroShotConfig(mode="clip")
    """CLIP's patch tokens as they are, training-free."""
    maskclip: ZeroShotConfig = ZeroShotConfig(mode="maskclip")
    """MaskCLIP, training-free."""
    sclip: ZeroShotConfig = ZeroShotConfig(mode="sclip")
    """SCLIP, training-free."""
    clearclip: ZeroShotConfig = ZeroShotConfig(mode="clearclip")
    """ClearCLIP, training-free."""
    naclip: ZeroShotConfig = ZeroShotConfig(mode="naclip")
    """NACLIP, training-free."""
    tcl: TclConfig = TclConfig()
    """Text-grounded masks."""
    ovsegmentor: OvSegmentorConfig = OvSegmentorConfig()
    """Groups of patches, learned from captions and their entities."""
    vilseg: VilSegConfig = VilSegConfig()
    """Clusters of patches, learned from captions and transformed views."""


TrainedSegmenterConfig = TclConfig | OvSegmentorConfig | VilSegConfig
"""Methods that train and segment: their configs have `phases`, `optim` and `augment`."""
TrainedConfig = ClipConfig | TrainedSegmenterConfig
"""Methods that train."""
TrainedMethod = Clip | Tcl | OvSegmentor | VilSeg
"""What they build."""
SegmenterConfig = ChanceConfig | ZeroShotConfig | TrainedSegmenterConfig
"""Methods that segment: rows of the results table."""
TRAINING_ONLY = (
    *("phases", "optim", "augment", "fidelity"),
    # TCL
    *("tcl_weight", "tcl_v_weight", "tcl_f_weight", "whole_image_weight", "area_weight", "tv_weight", "area_prior"),
    *("mask_scale", "mask_shift", "text_chunk", "checkpoint_blocks"),
    # OVSegmentor
    *("image_weights", "drop_path", "entity_weight", "label_weight", "mask_weight", "momentum"),
    # ViL-Seg
    *("init", "local_crops", "local_size", "local_area", "colour_jitter", "vision_token", "pool", "norm_last_layer"),
    *("student_temperature", "teacher_temperature", "warmup_teacher_temperature", "warmup_teacher_steps", "centre_momentum"),
    *("cluster_weight", "cluster_gradient", "cluster_pool", "cluster_form", "cluster_shifts", "cluster_lambda"),
    *("twin_degrees", "twin_scale", "twin_flip"),
)
"""Settings of methods that have no say in what trained weights predict."""


class Segmenter(Protocol):
    """What the evaluator asks of a method."""

    @property
    def background_threshold(self) -> float | None:
        """Value of the constant plane that `segment` puts in front; None where background is decided in another way."""
        ...

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Class embeddings [n, E]; background is never among the names."""
        ...

    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Scores [B, n, H, W] of normalised windows [B, 3, H, W]; with `background` a plane for it comes first."""
        ...

    def to(self, device: torch.device) -> "Segmenter":
        """Itself, moved to a device."""
        ...


@runtime_checkable
class DrawsRegions(Protocol):
    """What a segmenter may have besides if it groups pixels before it names them: its groups, for oracle mIoU.

    A method without this is judged by the masks that it predicts.
    """

    @property
    def regions_across_windows(self) -> bool:
        """Whether an id means the same region in all windows of an image."""
        ...

    def regions(self, image: Tensor, classes: Tensor) -> Tensor:
        """Region ids [B, H, W] int64 of normalised windows [B, 3, H, W], -1 = none; classes: their embeddings [n, E]."""
        ...


def build_trained(config: TrainedConfig, make_encoder: Callable[[], Encoder]) -> TrainedMethod:
    """A method that trains; the encoder is made only where the method stands on one."""
    encoder = make_encoder() if config.uses_clip else None
    return config.build(encoder)  # type: ignore[arg-type]  # those that stand on a CLIP always get one


def initialise(method: nn.Module) -> None:
    """Load the pretrained weights that a method's training starts from, where it asks for any."""
    hook = getattr(method, "initialise", None)
    if hook is not None:
        hook()


def load_segmenter(config: SegmenterConfig, encoder: EncoderConfig, weights: Path | None) -> Segmenter:
    """A method ready to segment. Raises InputError where a file is missing or belongs to another architecture."""
    if not isinstance(config, TrainedSegmenterConfig):
        return config.build(load_encoder(encoder)).eval()
    if weights is None:
        raise InputError(f"{config.name} needs trained weights; run the train stage first")
    method = build_trained(config, lambda: load_encoder(encoder))
    assert not isinstance(method, Clip)
    if method.state_dict().keys() - learned_state(method, config.phases).keys():
        initialise(method)  # a tower that no phase trains is as it was pretrained, and not among the trained weights
    load_trained(method, config.phases, weights)
    return method.eval()
