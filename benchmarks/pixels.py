"""The two kinds of pixels of the downloader side by side: how much they differ, and what they cost.

    python benchmarks/pixels.py [FOLDER] [--images 60] [--rounds 5]

Resizes every image of FOLDER, or photo-like JPEGs of its own (noise with a photo's spectrum, and shapes with sharp edges), with
`pixels: fast` and `pixels: img2dataset`. Prints PSNR and SSIM of the kept JPEGs against each other, and the processor time per
image of both (checks and perceptual hash included) and of img2dataset's Resizer alone. Rounds alternate in one process.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from filtering.images.image_config import ImageConfig, Resized
from filtering.images.resize import Resize, img2dataset_resizer

SETTINGS: dict[str, dict[str, Any]] = {
    "256 border": {"image_size": 256, "resize_mode": "border", "resize_only_if_bigger": False},
    "512 keep_ratio": {"image_size": 512, "resize_mode": "keep_ratio"},
    "224 center_crop": {"image_size": 224, "resize_mode": "center_crop"},
}


def photo(seed: int, size: tuple[int, int] | None = None, quality: int = 80) -> bytes:
    """A JPEG of `size` (width, height), or of 500 to 1600 pixels: noise whose amplitude falls as 1/f, and sharp shapes."""
    random = np.random.default_rng(seed)
    if size is None:
        longer = int(random.integers(500, 1601))
        size = (longer, int(longer * random.uniform(0.55, 1)))
        size = size if random.random() < 0.7 else size[::-1]
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(size)) ** 1.4
    planes = []
    for contrast in (45, 12, 12):  # luma, then chroma
        noise = np.fft.irfft2(amplitude * np.exp(2j * np.pi * random.random(amplitude.shape)), s=(height, width))
        planes.append(128 + contrast * noise / noise.std())
    image = cv2.cvtColor(np.stack(planes, axis=2).clip(0, 255).astype(np.uint8), cv2.COLOR_YCrCb2BGR)
    for _ in range(8):
        x, y, radius = (int(random.integers(1, limit)) for limit in (width, height, max(size) // 8))
        colour = [int(value) for value in random.integers(0, 256, 3)]
        cv2.circle(image, (x, y), radius, colour, -1, cv2.LINE_AA)
        cv2.rectangle(image, (y, x), (y + radius, x + 2 * radius), colour[::-1], 2)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB; 100 for equal pictures."""
    error = float(np.mean((one.astype(np.float32) - other) ** 2))
    return 10 * np.log10(255**2 / error) if error > 255**2 * 1e-10 else 100.0


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Structural similarity of the grey pictures (Wang et al. 2004: Gaussian window of 11, sigma 1.5)."""
    smooth = partial(cv2.GaussianBlur, ksize=(11, 11), sigmaX=1.5)
    a, b = (cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float64) for picture in (one, other))
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, covar = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mean_a * mean_b + c1) * (2 * covar + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def picture_of(done: Resized, mode: str) -> NDArray[np.uint8]:
    """The kept picture without its border, which would flatter every comparison."""
    kept: NDArray[np.uint8] = cv2.imdecode(np.frombuffer(done.image, np.uint8), cv2.IMREAD_COLOR)
    if mode != "border":
        return kept
    assert done.original_width
    assert done.original_height
    scale = len(kept) / max(done.original_width, done.original_height)
    width, height = max(1, round(done.original_width * scale)), max(1, round(done.original_height * scale))
    top, left = (len(kept) - height) // 2, (len(kept) - width) // 2
    return kept[top : top + height, left : left + width]


def milliseconds(call: Callable[[bytes], object], images: Sequence[bytes]) -> float:
    """Processor time per image."""
    began = time.process_time()
    for image in images:
        call(image)
    return 1000 * (time.process_time() - began) / len(images)


def compare(name: str, settings: dict[str, Any], images: Sequence[bytes], rounds: int) -> None:
    """Print one line of similarity and one of time."""
    mode = settings["resize_mode"]
    fast = Resize(ImageConfig(**settings, pixels="fast"))
    same = Resize(ImageConfig(**settings, pixels="img2dataset"))
    resizer = img2dataset_resizer()(settings["image_size"], mode, settings.get("resize_only_if_bigger", True))
    pairs = [[picture_of(resize(image), mode) for resize in (fast, same)] for image in images]  # warms both up
    peaks, structures = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
    calls = {"fast": fast, "img2dataset": same, "its Resizer alone": lambda data: resizer(io.BytesIO(data))}
    times: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(rounds):
        for kind, call in calls.items():
            times[kind].append(milliseconds(call, images))
    ratios = [slow / quick for quick, slow in zip(times["fast"], times["its Resizer alone"], strict=True)]
    print(
        f"{name:16} PSNR {statistics.median(peaks):.1f} dB (worst {min(peaks):.1f}), "
        f"SSIM {statistics.median(structures):.4f} (worst {min(structures):.4f})"
    )
    spent = ", ".join(f"{kind} {statistics.median(values):.2f} ms" for kind, values in times.items())
    print(f"{'':16} {spent}: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a folder of photos")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.folder:
        images = [path.read_bytes() for path in sorted(args.folder.glob("*.jp*g"))[: args.images]]
    else:
        images = [photo(seed) for seed in range(args.images)]
    print(f"{len(images)} JPEGs of {statistics.mean(map(len, images)) / 1000:.0f} kB, {args.rounds} rounds")
    for name, settings in SETTINGS.items():
        compare(name, settings, images, args.rounds)


if __name__ == "__main__":
    main()
