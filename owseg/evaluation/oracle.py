"""Oracle mIoU: how good a method's regions are, whatever it calls them.

Each region of an image is named by the label that most of its pixels carry. What is lost even then was lost in grouping; what
lies between this and a method's own score was lost in naming.
"""

import numpy as np
import torch
from torch import Tensor

from owseg.evaluation.datasets import IGNORE
from owseg.evaluation.inference import WINDOW_BATCH, enlarged, normalise, resize, windows_at_once, windows_of
from owseg.evaluation.protocols import Protocol, View
from owseg.normalisation import Normalisation
from owseg.segmenter import DrawsRegions


def draw_regions(
    method: DrawsRegions,
    image: np.ndarray,
    classes: Tensor,
    protocol: Protocol,
    normalisation: Normalisation,
    *,
    batch: int = WINDOW_BATCH,
) -> np.ndarray:
    """Region ids [H, W] int64 that a method draws on an RGB image [H, W, 3] uint8, at the image's own size; -1 = none.

    The image is scaled, cut and shown as for a prediction. classes: embeddings of `protocol.queries`.
    """
    scaled = normalise(resize(image, protocol.view), normalisation).to(classes.device)
    drawn = slide_regions(method, scaled, classes, protocol.view, batch=batch).cpu().numpy()
    rows, columns = (nearest(old, new) for old, new in zip(drawn.shape, image.shape[:2], strict=True))
    upsampled: np.ndarray = drawn[rows[:, None], columns]
    return upsampled


def slide_regions(method: DrawsRegions, image: Tensor, classes: Tensor, view: View, *, batch: int = WINDOW_BATCH) -> Tensor:
    """Region ids [H, W] int64 of a normalised image [3, H, W]; -1 = none.

    Ids cannot be averaged where windows overlap: a pixel takes that of the window whose centre is nearest, of two the first.
    Unless the method's ids mean the same in every window, those of different windows are different regions.
    """
    height, width = image.shape[-2:]
    boxes = windows_of(height, width, view)
    drawn = torch.full((height, width), -1, dtype=torch.int64, device=image.device)
    nearest_yet = torch.full((height, width), torch.inf, device=image.device)
    first_id, batch = 0, windows_at_once(batch, view)
    for start in range(0, len(boxes), batch):
        some = boxes[start : start + batch]
        windows = torch.stack([image[:, rows, columns] for rows, columns in some])
        for (rows, columns), region in zip(some, _window_regions(method, windows, classes, view), strict=True):
            distance = _from_centre(*region.shape).to(image.device)
            nearer = distance < nearest_yet[rows, columns]
            nearest_yet[rows, columns][nearer] = distance[nearer]
            drawn[rows, columns][nearer] = torch.where(region < 0, -1, region + first_id)[nearer]
            if not method.regions_across_windows:
                first_id += int(region.max()) + 1
    return drawn


def _window_regions(method: DrawsRegions, windows: Tensor, classes: Tensor, view: View) -> Tensor:
    """Region ids [B, H, W] of windows [B, 3, H, W], which the method sees enlarged where the view says so."""
    regions = method.regions(enlarged(windows, view), classes)
    rows, columns = (nearest(old, new) for old, new in zip(regions.shape[1:], windows.shape[2:], strict=True))
    return regions[:, rows[:, None], columns]


def _from_centre(height: int, width: int) -> Tensor:
    """Squared distance [height, width] of each pixel from the middle, exact in float32."""
    y, x = (torch.arange(side) - (side - 1) / 2 for side in (height, width))
    return y[:, None] ** 2 + x**2


def nearest(old: int, new: int) -> np.ndarray:
    """Index [new] of the old pixel in which the centre of each new one lies (torch's "nearest-exact")."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def oracle_confusion(regions: np.ndarray, label: np.ndarray, classes: int) -> tuple[np.ndarray, int]:
    """Pixel counts [classes, classes] int64, rows = label, columns = the name of the pixel's region; and the number of regions.

    regions, label: [H, W]. A region is named by the label that most of its pixels carry, of equals the first; what lies in no
    region (-1) is one more. Label 255 neither counts nor has a say.
    """
    ids, region = np.unique(regions, return_inverse=True)
    counted = label != IGNORE
    pairs = region.reshape(label.shape)[counted] * classes + label[counted]
    votes = np.bincount(pairs, minlength=len(ids) * classes).reshape(len(ids), classes)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts.T, votes.argmax(axis=1), votes)
    return counts, len(ids)
