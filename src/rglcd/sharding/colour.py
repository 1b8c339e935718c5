"""Colour: a decoded picture's samples as RGB of eight bits, in sRGB, on white."""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

_MAX_PROFILE_BYTES: Final = 4 << 20
_MAX_SRGB_LEVELS: Final = 2
"""Levels of 255 by which a profile may differ from sRGB and pass for it: the profiles called sRGB differ by one or two from each other."""

_GREY_STEPS: Final = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies the samples of a PNG of two or four bits by; it leaves the transparent one as the file has it."""

Conversion = Callable[[Image.Image], Image.Image]


def conversion_of(image: Image.Image) -> Conversion | None:
    """What turns the colours of ``image`` into sRGB; None if that is nothing, or the profile is missing, broken or for other colours."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= _MAX_PROFILE_BYTES:
        return None
    return _conversion(profile, _colours(image.mode))


def load(image: ImageFile.ImageFile, data: bytes) -> None:
    """Load ``image``, opened from ``data``; the transparent colour that a PNG may name is made to suit the samples as Pillow gives them."""
    layout = image.tile[0].args if image.tile else None
    if isinstance(image.info.get("transparency"), str):
        del image.info["transparency"]  # a PNG's text of that name
    is_keyed = image.format == "PNG" and "transparency" in image.info
    if is_keyed and layout in _GREY_STEPS:
        image.info["transparency"] *= _GREY_STEPS[layout]
    image.load()
    if is_keyed and layout == "RGB;16B":
        _make_key_transparent(image, data)


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` (of eight bits a channel, or grey of sixteen) as RGB: first converted, then laid on white where it is transparent."""
    conversion = conversion_of(image)
    image = _eight_bit_grey(image) if image.mode.startswith("I") else image
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # alpha never written, as Photoshop does: everything else shows such a file opaque
    alpha = None
    if image.has_transparency_data:
        image = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        alpha = image.getchannel("A")
    rgb = image.convert("RGB") if conversion is None else conversion(image)
    if alpha is None:
        return rgb
    white = Image.new("RGB", image.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _make_key_transparent(image: Image.Image, data: bytes) -> None:
    """Give ``image``, loaded from a PNG of 16-bit RGB, an alpha channel: zero where all sixteen bits are the transparent colour's.

    Pillow decodes the upper eight bits alone and compares them with sixteen; so the lower eight are decoded too.
    """
    key: tuple[int, int, int] = image.info.pop("transparency")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as lower:
        lower.tile = [lower.tile[0]._replace(args="RGB;16L")]
        halves = np.asarray(image), np.asarray(lower)
    is_key = np.ones(halves[0].shape[:2], dtype=np.bool_)
    for channel, value in enumerate(key):
        for half, wanted in zip(halves, divmod(value, 256), strict=True):
            is_key &= half[..., channel] == wanted
    image.putalpha(_alpha(is_key))


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """The upper eight bits: Pillow's own conversion clips at 255, which leaves a white picture."""
    samples = np.asarray(image)
    grey = Image.fromarray((samples.astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(_alpha(samples == image.info["transparency"]))
    return grey


def _alpha(is_transparent: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(np.where(is_transparent, np.uint8(0), np.uint8(255)))


def _colours(mode: str) -> str:
    """The colours that a profile in a picture of ``mode`` is about: ``L``, ``RGB`` or ``CMYK``."""
    if mode == "CMYK":
        return mode
    return "L" if mode in ("1", "L", "LA") or mode.startswith("I") else "RGB"


@lru_cache(maxsize=16)
def _conversion(profile: bytes, colours: str) -> Conversion | None:
    try:
        transform = ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile("sRGB"), colours, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if colours != "CMYK":
        # What the profile does and not what it is called: "GIMP built-in Linear sRGB" is none.
        probe = _probe().convert(colours)
        change = np.asarray(transform.apply(probe)).astype(np.int16) - np.asarray(probe.convert("RGB"))
        if abs(change).max() <= _MAX_SRGB_LEVELS:
            return None
    return lambda image: transform.apply(image if image.mode == colours else image.convert(colours))


def _probe() -> Image.Image:
    """One line of all greys and of a grid of 729 colours."""
    greys = np.repeat(np.arange(256)[:, None], 3, axis=1)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * 3), axis=-1).reshape(-1, 3)
    return Image.fromarray(np.concatenate((greys, grid))[None].astype(np.uint8))
