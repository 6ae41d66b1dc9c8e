"""How images are normalised before any method sees them."""

from dataclasses import dataclass

from owseg import InputError


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Per-channel shift and scale of images, RGB in 0..1 (ImageNet's, as TCL; OpenAI's CLIP itself used others)."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """What is subtracted."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """What the rest is divided by."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise InputError(f"{name}: {list(getattr(self, name))} must be three numbers, for red, green and blue")
        if min(self.std) <= 0:
            raise InputError(f"std: {list(self.std)} must be positive")
