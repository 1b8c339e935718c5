"""What both sides of a comparison start from: random weights under the published names, pictures, captions. NumPy and Pillow only."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CAPTIONS = (
    "A red fox in the snow, oil painting",
    "Tom &amp; Jerry’s “best” café — 2 naïve cats!",
    "a very long caption about " + "a castle by the sea and " * 20,
    "",
)

SIZES = ((40, 28), (31, 47), (64, 64), (28, 28), (32, 32))
"""(width, height) of the pictures; the tiny towers look at 28 and 32 pixels."""


def weights(shapes: Mapping[str, Sequence[int]], *, seed: int) -> dict[str, NDArray[np.float32]]:
    """A tensor for each name, of a size that keeps activations near one; the same on any machine (RandomState never changes)."""
    return {name: _tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    if name.endswith("logit_scale"):
        return np.array(4.0, dtype=np.float32)
    noise = np.random.RandomState(seed ^ zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return noise / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    return 1 + 0.2 * noise if _is_norm(name) else 0.2 * noise


def _is_norm(name: str) -> bool:
    return name.endswith(".weight") and ("ln_" in name or "norm" in name.lower())


def pictures() -> list[Image.Image]:
    """Smooth colours with an edge and a little noise, in :data:`SIZES`."""
    return [_picture(width, height, seed) for seed, (width, height) in enumerate(SIZES)]


def _picture(width: int, height: int, seed: int) -> Image.Image:
    random = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x * random.uniform(0.05, 0.3) + y * random.uniform(0.05, 0.3) + random.uniform(0, 6)) for _ in range(3)]
    colours = 127 + 90 * np.stack(waves, axis=-1) + 6 * random.standard_normal((height, width, 3))
    colours[height // 3 :, : width // 2] *= 0.6
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))
