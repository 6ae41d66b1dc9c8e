"""OVSegmentor (2301.09121): groups of patches, learned from captions and their entities."""

from owseg.methods.ovsegmentor.method import CLIP, VISION, OvSegmentor, OvSegmentorConfig

__all__ = ["CLIP", "VISION", "OvSegmentor", "OvSegmentorConfig"]
