"""HEIC, as phones write it: made JPEG when a folder of images is taken, so that no later stage, and no pod, needs its decoder.

The decoder comes with the extra ``heic``. libheif turns a picture upright itself, and refuses one that is larger than its header says.
"""

from functools import cache
from pathlib import Path
from typing import Final

from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.decoding import decode, encode
from rglcd.sharding.source import MAX_IMAGE_BYTES

EXTENSIONS: Final = frozenset({"heic", "heif", "hif"})
EXTRA: Final = "heic"

_FORMAT: Final = "HEIF"


@cache
def is_readable() -> bool:
    """Whether the extra ``heic`` is installed. Pillow then knows HEIF, which nothing but :func:`as_jpeg` asks it for."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def as_jpeg(file: Path) -> bytes | None:
    """The picture in ``file``, upright and sRGB, as a JPEG; None if it cannot be read, is of another format, damaged or too large."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            return None
        return encode(decode(data, formats=(_FORMAT,)), "jpeg")
    except (PermissionError, FileNotFoundError, RowRejectedError):
        return None
