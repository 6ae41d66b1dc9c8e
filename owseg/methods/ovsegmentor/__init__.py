"""OVSegmentor (2301.09121): groups of patches, learned from captions and their entities."""

from owseg.methods.ovsegmentor.method import OvSegmentor, OvSegmentorConfig
from owseg.methods.ovsegmentor.settings import CLIP, VISION

__all__ = ["CLIP", "VISION", "OvSegmentor", "OvSegmentorConfig"]
