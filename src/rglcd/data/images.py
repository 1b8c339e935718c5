"""Images: hostile bytes to a square RGB picture, and back to bytes.

A picture that already is RGB and of the wanted size passes through unchanged, pixel for pixel.
"""

import io
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rglcd.data.accounting import Reason, RowRejectedError

MAX_PIXELS: Final = 64_000_000

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded. Pillow knows forty more, some of which start other programs (EPS)."""

# Quality 95 is img2dataset's default; the other settings are pinned so that an upgrade of Pillow cannot move them unseen.
_ENCODINGS: Final[dict[str, dict[str, Any]]] = {
    "png": {"compress_level": 6},
    "jpeg": {"quality": 95, "subsampling": "4:2:0", "optimize": False, "progressive": False},
    "webp": {"quality": 95, "method": 4, "lossless": False, "exact": False},
}
EXTENSIONS: Final = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""File extension of each image format, as img2dataset writes it."""


def decode(data: bytes) -> Image.Image:
    """The picture in ``data``, RGB, upright; the first frame of several, transparency laid on white.

    The header is read first, and what claims more than :data:`MAX_PIXELS` is refused before a pixel is decoded.
    Raises :class:`RowRejectedError` for anything that is not a whole image of :data:`FORMATS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(data)
        except (RowRejectedError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise RowRejectedError(Reason.TOO_LARGE) from None
        except Exception:  # Pillow's decoders raise at least eight types on damaged bytes: the image is at fault in each
            raise RowRejectedError(Reason.UNDECODABLE) from None


def square(image: Image.Image, resolution: int) -> Image.Image:
    """``image`` with its short side resized to ``resolution`` and its centre cropped: (resolution, resolution).

    Bicubic with antialiasing (Pillow widens the filter when it shrinks), as clean-fid resizes (Parmar et al. 2022).
    The crop is taken before the resize, so a strip of 64 million by one pixels costs no more than its square.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def encode(image: Image.Image, image_format: str) -> bytes:
    """``image`` as ``png``, ``jpeg`` or ``webp``: the same bytes for the same pixels, and no metadata."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, image_format, **_ENCODINGS[image_format])
    return stream.getvalue()


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels (3, H, W) of an RGB ``image``, uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise RowRejectedError(Reason.TOO_LARGE)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Sixteen-bit grey: Pillow's own conversion clips at 255, which leaves a white picture.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
