"""Further crops of an image, as self-distillation compares them, and changes of their colours, drawn a batch at a time."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from owseg.augmentation import AugmentConfig
from owseg.noise import uniform


class Crops:
    """The loader's part: the second global view and `count` small crops of an image. Random as torch is; picklable."""

    def __init__(self, count: int, size: int, area: Sequence[float]) -> None:
        """size: side of a small crop in pixels; area: smallest and largest share of the image that it covers."""
        self.count, self.size, self.area = count, size, area

    def __call__(self, image: Image.Image, augment: AugmentConfig) -> dict[str, Tensor]:
        """ "global" [1, 3, H, W] and "local" [count, 3, h, w] of an RGB image, in 0..1."""
        second = _crop(image, augment.size, (augment.min_area, 1.0))
        local = [_crop(image, self.size, self.area) for _ in range(self.count)]
        return {"global": second[None], "local": torch.stack(local) if local else torch.zeros(0, 3, self.size, self.size)}


def _crop(image: Image.Image, size: int, area: Sequence[float]) -> Tensor:
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.functional import hflip, pil_to_tensor, resized_crop

    top, left, height, width = RandomResizedCrop.get_params(image, [*area], [3 / 4, 4 / 3])
    crop = resized_crop(image, top, left, height, width, [size, size])
    if torch.rand(()) < 0.5:
        crop = hflip(crop)
    pixels: Tensor = pil_to_tensor(crop)
    return pixels / 255


def jitter(images: Tensor, most: float) -> Tensor:
    """Normalised images [B, 3, H, W] with another brightness, contrast and saturation each, by up to `most`, 0..1."""
    if not most or not images.numel():
        return images
    draws = uniform((len(images), 3, 1, 1, 1), images.device, images.dtype)
    bright, contrast, saturation = ((2 * draws - 1) * most).unbind(dim=1)
    grey = images.mean(dim=1, keepdim=True)
    coloured = grey + (images - grey) * (1 + saturation)
    mean = coloured.mean(dim=(1, 2, 3), keepdim=True)
    changed: Tensor = mean + (coloured - mean) * (1 + contrast) + bright
    return changed
