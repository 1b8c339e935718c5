"""Images: hostile bytes to an RGB picture that fits, and back to bytes.

A picture that already is RGB and of the wanted size passes through unchanged, pixel for pixel. What is unusual:

- several frames: the first; transparency: laid on white; EXIF orientation: applied, then gone;
- sixteen bits a channel: the upper eight; grey, palette: as RGB;
- an ICC profile that does not do what sRGB does: converted to sRGB; CMYK without a usable profile: by the plain complement;
- truncated, damaged, more than :data:`MAX_PIXELS` or :data:`jpeg.MAX_SCANS`, text of more than 16 MiB, none of :data:`FORMATS`: refused.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from torch.nn import functional as F

from rglcd.sharding import jpeg
from rglcd.sharding.accounting import Reason, RowRejectedError
from rglcd.sharding.colour import conversion_of, load, to_rgb

Pixels = NDArray[np.uint8]
"""(H, W, 3), RGB."""

MAX_PIXELS: Final = 64_000_000
MAX_COPIED_PIXELS: Final = 32_000_000
"""Of whatever is not a plain JPEG: Pillow holds several copies of it, and a worker is to need less than 1 GiB."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded. Pillow knows forty more, some of which start other programs (EPS)."""

_JPEG: Final = ("JPEG", "MPO")  # the second is several in one file, as some cameras write

# Text in a PNG is no reason to refuse the picture. Pillow reads 1 MiB of one text (and 64 MiB of all); edit histories are longer.
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20

# Quality 95 is img2dataset's default; the other settings are pinned so that an upgrade of Pillow cannot move them unseen.
_ENCODINGS: Final[dict[str, dict[str, Any]]] = {
    "png": {"compress_level": 6},
    "jpeg": {"quality": 95, "subsampling": "4:2:0", "optimize": False, "progressive": False},
    "webp": {"quality": 95, "method": 4, "lossless": False, "exact": False},
}
EXTENSIONS: Final = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""File extension of each image format, as img2dataset writes it."""
_MAX_SIDES: Final = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}


class Fit(StrEnum):
    """How a picture meets a resolution: img2dataset's resize modes, by its names."""

    CENTER_CROP = "center_crop"
    """Short side resized, centre cropped: a square."""
    BORDER = "border"
    """Long side resized, white on both sides: a square."""
    KEEP_RATIO = "keep_ratio"
    """Short side resized, nothing cut."""
    NO = "no"
    """As it came."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What a picture must be like, and what it is made like."""

    resolution: int
    fit: Fit = Fit.CENTER_CROP
    min_side: int = 1
    """Short side of the original, in pixels, below which it is refused."""
    max_aspect: float | None = None
    """Long side over short side of the original, above which it is refused."""


@dataclass(frozen=True)
class Picture:
    """A picture that fits, and the size (width, height) it came in, upright."""

    pixels: Pixels
    original_size: tuple[int, int]


def open_picture(data: bytes, fitting: Fitting) -> Picture:
    """The picture in ``data``, made to fit. Size and shape are judged by the header, before a pixel is decoded.

    Raises :class:`RowRejectedError` for anything that is not a whole image of :data:`FORMATS` within the limits.
    """
    with _blaming(data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image, fitting)
        pixels = _decode(image, data)
        height, width = pixels.shape[:2]
        return Picture(fitted(pixels, fitting.resolution, fit=fitting.fit), (width, height))


def decode(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture in ``data``, RGB and upright. Raises :class:`RowRejectedError` as :func:`open_picture` does."""
    with _blaming(data), Image.open(io.BytesIO(data), formats=formats) as image:
        _check_size(image, None)
        return Image.fromarray(_decode(image, data))


def square(image: Image.Image, resolution: int) -> Image.Image:
    """``image`` with its short side resized to ``resolution`` and its centre cropped: (resolution, resolution)."""
    return Image.fromarray(fitted(np.asarray(image), resolution, fit=Fit.CENTER_CROP))


def fitted(pixels: Pixels, resolution: int, *, fit: Fit) -> Pixels:
    """``pixels`` resized as ``fit`` says.

    Bicubic with antialiasing (the filter widens when it shrinks), as clean-fid resizes (Parmar et al. 2022): Pillow's result
    to 50 dB and more, in half the time. The crop comes first, so a strip of 64 million by one pixels costs its square only.
    """
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    if fit is Fit.NO:
        return pixels
    if fit is Fit.CENTER_CROP:
        top, left = (height - short) // 2, (width - short) // 2
        return _resized(pixels[top : top + short, left : left + short], resolution, resolution)
    over = short if fit is Fit.KEEP_RATIO else long
    new_height, new_width = (max(1, round(side * resolution / over)) for side in (height, width))
    if new_height * new_width > MAX_PIXELS:
        raise RowRejectedError(Reason.TOO_LARGE)
    resized = _resized(pixels, new_height, new_width)
    if fit is Fit.KEEP_RATIO:
        return resized
    framed = np.full((resolution, resolution, 3), 255, dtype=np.uint8)
    top, left = (resolution - new_height) // 2, (resolution - new_width) // 2
    framed[top : top + new_height, left : left + new_width] = resized
    return framed


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (12 bytes or more) can be one of :data:`FORMATS`."""
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def encode(image: Image.Image | Pixels, image_format: str) -> bytes:
    """``image`` as ``png``, ``jpeg`` or ``webp``: the same bytes for the same pixels, and no metadata.

    Raises :class:`RowRejectedError` for a side longer than the format can say.
    """
    picture = Image.fromarray(np.asarray(image))
    if max(picture.size) > _MAX_SIDES[image_format]:
        raise RowRejectedError(Reason.TOO_LARGE)
    stream = io.BytesIO()
    picture.save(stream, image_format, **_ENCODINGS[image_format])
    return stream.getvalue()


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels (3, H, W) of an RGB ``image``, uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


@contextmanager
def _blaming(data: bytes) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the image ``data``, and has a reason; but for what would befall the next image too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (RowRejectedError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise RowRejectedError(Reason.TOO_LARGE) from error
        except UnidentifiedImageError as error:
            is_known = looks_like_image(data[:16])
            raise RowRejectedError(Reason.UNDECODABLE if is_known else Reason.UNKNOWN_FORMAT) from error
        except Exception as error:  # Pillow's decoders raise at least eight types on damaged bytes
            if _is_of_the_machine(error):
                raise
            raise RowRejectedError(Reason.UNDECODABLE) from error


def _is_of_the_machine(error: Exception) -> bool:
    """Whether the system (an OSError with a number; Pillow's have none) or torch's allocator (a RuntimeError) refused something."""
    return (isinstance(error, OSError) and error.errno is not None) or "DefaultCPUAllocator" in str(error)


def _check_size(image: Image.Image, fitting: Fitting | None) -> None:
    size = image.size
    if size[0] * size[1] > (MAX_PIXELS if _is_plain_jpeg(image) else MAX_COPIED_PIXELS):
        raise RowRejectedError(Reason.TOO_LARGE)
    if fitting is None:
        return
    if min(size) < fitting.min_side:
        raise RowRejectedError(Reason.TOO_SMALL)
    if fitting.max_aspect is not None and max(size) > fitting.max_aspect * min(size):
        raise RowRejectedError(Reason.TOO_LONG)


def _decode(image: ImageFile.ImageFile, data: bytes) -> Pixels:
    pixels = _jpeg_pixels(image, data) if image.format in _JPEG else None
    if pixels is None:
        load(image, data)
        pixels = np.asarray(to_rgb(image))
    return _upright(pixels, image.getexif().get(ExifTags.Base.Orientation, 1))


def _jpeg_pixels(image: Image.Image, data: bytes) -> Pixels | None:
    """Pixels of a plain JPEG; None for another one, or for one with a flaw that is no damage: they are Pillow's to decode."""
    jpeg.refuse_too_many_scans(data)
    if _is_plain_jpeg(image):
        return jpeg.decoded(data, image.size)
    jpeg.refuse_damaged(data)
    return None


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in _JPEG and image.mode in ("RGB", "L") and conversion_of(image) is None


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """EXIF's eight orientations: 2 to 4 flip, 5 to 8 transpose first."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    # numpy calls a flipped axis of length one contiguous; torch takes no negative stride.
    is_usable = pixels.flags.c_contiguous and pixels.flags.writeable and min(pixels.strides) >= 0
    writable = pixels if is_usable else np.array(pixels)
    # The batch axis goes first: only of a tensor that looks channels-last does torch resize bytes without making planes of them.
    batch = torch.from_numpy(writable)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(batch, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
