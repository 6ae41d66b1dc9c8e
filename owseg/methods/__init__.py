"""The methods. Adding one = one file or folder here, and one line in `Methods`."""

from dataclasses import dataclass, fields

from owseg.method_config import MethodConfig, TrainableConfig
from owseg.methods.chance import ChanceConfig
from owseg.methods.clip import ClipConfig
from owseg.methods.dino import DinoConfig
from owseg.methods.ovsegmentor import OvSegmentorConfig
from owseg.methods.proxyclip import ProxyClipConfig
from owseg.methods.talk2dino import Talk2DinoConfig
from owseg.methods.tcl import TclConfig
from owseg.methods.vilseg import VilSegConfig
from owseg.methods.zero_shot import ZeroShotConfig


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The registry: a field is a method by its name in configs, results and MLflow."""

    clip: ClipConfig = ClipConfig()
    """Contrastive pretraining of the encoder, where `encoder.pretrained` is "pretrain"."""
    dino: DinoConfig = DinoConfig()
    """Self-supervised pretraining of an image tower, where a method's `image_weights` is "pretrain"."""
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
    proxyclip: ProxyClipConfig = ProxyClipConfig()
    """ProxyCLIP, training-free."""
    tcl: TclConfig = TclConfig()
    """Text-grounded masks."""
    ovsegmentor: OvSegmentorConfig = OvSegmentorConfig()
    """Groups of patches, learned from captions and their entities."""
    vilseg: VilSegConfig = VilSegConfig()
    """Clusters of patches, learned from captions and transformed views."""
    talk2dino: Talk2DinoConfig = Talk2DinoConfig()
    """CLIP's texts, mapped to the patches of a frozen self-supervised ViT."""


METHODS: dict[str, MethodConfig] = {field.name: getattr(Methods(), field.name) for field in fields(Methods)}
"""Each method with its default settings, by name."""
TRAINABLE: dict[str, TrainableConfig] = {
    name: config for name, config in METHODS.items() if isinstance(config, TrainableConfig)
}
"""Those that train."""
PRETRAININGS: dict[str, TrainableConfig] = {name: config for name, config in TRAINABLE.items() if config.tower}
"""Those of them that train a tower for others, and are no rows of a table."""
