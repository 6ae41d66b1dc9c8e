"""Which images are kept, and what becomes of one: what workers know of resizing without loading what resizes."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from filtering import InputError


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Which images are good enough, and how they are stored. The resize options are img2dataset's, by its own names."""

    image_size: int = 512
    """Target in pixels: of the shorter side for keep_ratio and center_crop, else of the longer side."""
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep_ratio"
    """keep_ratio (shorter side to image_size), keep_ratio_largest (longer side), center_crop (square), border (white), or no:
    the original file is kept, byte for byte and with its metadata, as jpg, png, webp, gif, bmp or avif."""
    resize_only_if_bigger: bool = True
    """Leave smaller images at their size instead of enlarging them."""
    min_side: int = 32
    """Shortest side in pixels; less is refused as "too_small"."""
    max_aspect: float = 10.0
    """Longer side divided by shorter; more is refused as "too_elongated"."""
    max_area: int = 2**26
    """Most pixels (width times height); more is refused as "too_many_pixels" before it is decoded."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the stored image; png is lossless. Not with resize_mode=no."""
    quality: int = 95
    """JPEG or WebP quality of the stored image, 1 to 100."""
    pixels: Literal["fast", "img2dataset"] = "fast"
    """fast decodes JPEGs at a reduced scale if that is enough; img2dataset gives the very pixels of its version 1.47.0."""
    max_seconds: float = 10.0
    """Processor time in seconds that one image may take; more is refused as "too_costly"."""

    def __post_init__(self) -> None:
        for name in ("image_size", "min_side", "max_area"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is below 1")
        if self.max_aspect < 1:
            raise InputError(f"max_aspect: {self.max_aspect} is below 1, which no image can meet")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality: {self.quality} is not between 1 and 100")
        if not self.max_seconds > 0:
            raise InputError(f"max_seconds: {self.max_seconds} is not above 0")
        if self.resize_mode == "no" and self.encode_format != "jpg":
            raise InputError(
                f"encode_format: resize_mode=no keeps the original files, so there is no {self.encode_format} to write; "
                "for images that are not made smaller set resize_mode=keep_ratio and a large image_size"
            )

    @property
    def content(self) -> dict[str, Any]:
        """The settings that the bytes of a stored image depend on, and whether there is one."""
        settings = asdict(self)
        del settings["max_seconds"]
        if self.resize_mode == "no":
            settings["encode_format"] = "original"
        elif self.encode_format == "jpg":
            del settings["encode_format"]  # what was stored before there was a choice stays valid
        return settings


@dataclass(frozen=True, kw_only=True)
class Resized:
    """`image`, `extension`, `width`, `height` and `phash` are there if and only if `status` is "success".

    Other statuses: not_an_image, unsupported_format, truncated, undecodable, too_many_pixels, too_small, too_elongated,
    too_costly, client_error. Sizes are those of the upright picture; the original one is there if the header was legible.
    `phash` is that of the kept picture without its border (`filtering.images.phash`), `message` what the decoder said.
    """

    status: str
    image: bytes = field(default=b"", repr=False)
    """The file to store."""
    extension: str | None = None
    """What kind of file it is: jpg, png, webp, gif, bmp or avif."""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    phash: str | None = None
    message: str | None = None
