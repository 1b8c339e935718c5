"""Pictures inside a page: as ``data:`` URIs that are small enough together, all in the same size and quality."""

import io
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from PIL import Image

CRISP_SIDE: Final = 128
"""Pictures up to this side are embedded without loss, where they fit, and enlarged without blur."""

_LOSSY: Final = ((512, 86), (384, 84), (256, 82), (192, 80), (128, 75), (64, 70), (32, 60))
"""Longest side in pixels and WebP's quality: what is tried, best first. The last is taken though it does not fit."""

_SAMPLE: Final = 6
"""So many pictures are encoded to see whether a size can do for all."""


def enlarged_as(side: int) -> Literal["crisp", "smooth"]:
    """How a picture of ``side`` pixels is enlarged."""
    return "crisp" if side <= CRISP_SIDE else "smooth"


def embedded(images: Sequence[Image.Image], *, most: int) -> list[str]:
    """``images`` as ``data:`` URIs of at most ``most`` characters together, in the best size and quality in which all fit.

    All get the same, for they are looked at side by side. Where not even the smallest fits, that is what they get.
    """
    sample = images[:: max(1, len(images) // _SAMPLE)]
    for step in _steps(max((image.width for image in images), default=0)):
        if step != _LOSSY[-1] and len(images) * _length(sample, step) > most * len(sample):
            continue
        found = [_uri(image, step) for image in images]
        if step == _LOSSY[-1] or sum(map(len, found)) <= most:
            return found
    raise AssertionError("the last step is always taken")


def _steps(side: int) -> Iterator[tuple[int, int] | None]:
    """None: without loss."""
    if side <= CRISP_SIDE:
        yield None
    yield from _LOSSY


def _length(images: Sequence[Image.Image], step: tuple[int, int] | None) -> int:
    return sum(len(_uri(image, step)) for image in images)


def _uri(image: Image.Image, step: tuple[int, int] | None) -> str:
    stream = io.BytesIO()
    if step is None:
        image.save(stream, format="PNG", optimize=True)
        return f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"
    side, quality = step
    image = image if image.width <= side else image.resize((side, side), Image.Resampling.LANCZOS)
    image.save(stream, format="WEBP", quality=quality)
    return f"data:image/webp;base64,{b64encode(stream.getvalue()).decode()}"
