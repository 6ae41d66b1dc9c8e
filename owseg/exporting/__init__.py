"""Trained models as folders that transformers, open_clip and timm read by themselves."""
