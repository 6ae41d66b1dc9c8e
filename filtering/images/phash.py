"""A perceptual hash: the hashes of pictures that look alike differ in few bits."""

import cv2
import numpy as np

from filtering.images.pixels import Picture


def phash(picture: Picture) -> str:
    """The 64-bit pHash of a picture as 16 hex digits (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010).

    The picture in grey (ITU-R BT.601) is reduced to 32 x 32 whatever its aspect, and transformed by the orthonormal DCT-II. Of
    the coefficients, those of rows 1 to 8 and columns 1 to 8 count, rounded to hundredths: a bit is set where one is above
    the median of the 64, row by row, the most significant bit first. A picture of one colour has the hash 0, and so has one
    that changes in one direction alone, such as stripes or a gradient from left to right: none of these coefficients sees it.
    """
    # Averaging any size straight into 32 x 32 takes ten times as long. A picture of 128 x 128 samples is plenty for 64 bits.
    sampled = cv2.cvtColor(cv2.resize(picture, (128, 128), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2GRAY)
    small = cv2.resize(sampled, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.round(cv2.dct(small)[1:9, 1:9], 2).ravel()
    ordered = np.sort(low)
    median = (ordered[31] + ordered[32]) / 2
    return np.packbits(low > median).tobytes().hex()
