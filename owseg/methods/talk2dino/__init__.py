"""Talk2DINO (2411.19331): a small map from CLIP's texts to the patches of a frozen self-supervised ViT."""

from owseg.methods.talk2dino.method import Talk2Dino, Talk2DinoConfig

__all__ = ["Talk2Dino", "Talk2DinoConfig"]
