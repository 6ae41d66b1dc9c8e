"""A perceptual hash: the hashes of pictures that look alike differ in few bits."""

import cv2
import numpy as np

from filtering.pixels import Picture


def phash(picture: Picture) -> str:
    """The 64-bit pHash of a picture as 16 hex digits (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010).

    The grey picture (ITU-R BT.601) is reduced to 32 x 32 without keeping its aspect and transformed by the orthonormal DCT-II.
    Of its coefficients, those of rows 1 to 8 and columns 1 to 8 count, rounded to whole numbers: a bit is set where one is
    above the median of the 64, row by row, the most significant bit first. A picture of one colour has the hash 0.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    # Averaging any size straight into 32 x 32 takes several times as long; from 128 on, cv2 averages whole pixels.
    small = cv2.resize(cv2.resize(grey, (128, 128), interpolation=cv2.INTER_LINEAR), (32, 32), interpolation=cv2.INTER_AREA)
    low = np.rint(cv2.dct(small.astype(np.float32))[1:9, 1:9]).ravel()
    ordered = np.sort(low)
    median = (ordered[31] + ordered[32]) / 2
    return np.packbits(low > median).tobytes().hex()
