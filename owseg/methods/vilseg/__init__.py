"""ViL-Seg (2207.08455), reconstructed: its code was never published (docs/fidelity.md)."""

from owseg.methods.vilseg.method import VilSeg, VilSegConfig

__all__ = ["VilSeg", "VilSegConfig"]
