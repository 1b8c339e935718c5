"""Differentiable image preprocessing of the reward models: resize, crop or pad, normalise, on batches of tensors.

The published models were fed by torchvision's transforms, one PIL image at a time. These do the same to a batch, with one
difference: PIL rounds to whole levels after each of its two passes; these do not, so that the gradient is defined.

Shapes: B batch, (H, W) the pixels' size, S the side that the tower expects.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from rglcd.models.precision import widened

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation (openai/CLIP, clip/clip.py); every published model here uses it."""


def shortest_side_cropped(pixels: Tensor, size: int) -> Tensor:
    """Shorter side to S, then the central S x S: torchvision's ``Resize(S, bicubic)`` and ``CenterCrop(S)`` of a PIL image.

    PIL holds whole levels, so what bicubic overshoots is cut to [0, 1]. (B, 3, H, W) to (B, 3, S, S).
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    target = (int(size * height / short), int(size * width / short))
    resized = pixels if target == (height, width) else _bicubic(pixels, target).clamp(0, 1)
    top, left = (round((side - size) / 2.0) for side in target)
    return resized[..., top : top + size, left : left + size]


def longest_side_padded(pixels: Tensor, size: int) -> Tensor:
    """Longer side to S, black on either side of the shorter: hpsv2's ``ResizeMaxSize`` (open_clip/transform.py).

    It works on tensors, so what bicubic overshoots stays. (B, 3, H, W) to (B, 3, S, S).
    """
    height, width = pixels.shape[-2:]
    scale = size / max(height, width)
    target = (round(height * scale), round(width * scale))
    resized = pixels if target == (height, width) else _bicubic(pixels, target)
    above, left = ((size - side) // 2 for side in target)
    return pad(resized, (left, size - target[1] - left, above, size - target[0] - above))


def _bicubic(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """With antialiasing, as PIL always does and torchvision does to tensors since 0.17."""
    return interpolate(pixels, size=size, mode="bicubic", antialias=True)


class Fit(Enum):
    """How an image of any size becomes a square."""

    SHORTEST_CROPPED = "shortest side, cropped"
    LONGEST_PADDED = "longest side, padded"


_FITS: dict[Fit, Callable[[Tensor, int], Tensor]] = {
    Fit.SHORTEST_CROPPED: shortest_side_cropped,
    Fit.LONGEST_PADDED: longest_side_padded,
}


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Fit to a square, then (pixels - mean) / std per channel, in float32 at least; then given in ``dtype``.

    ``mean`` and ``std`` are (3, 1, 1), placed once: no copy in a step.
    """

    fit: Fit
    mean: Tensor
    std: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, fit: Fit, *, mean: Sequence[float] = OPENAI_MEAN, std: Sequence[float] = OPENAI_STD) -> "Preprocessing":
        """With one number a channel."""
        means, stds = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
        return cls(fit, means, stds, torch.float64)

    def like(self, weights: Tensor) -> "Preprocessing":
        """The same, for a network of the dtype and on the device of ``weights``."""
        wide = widened(weights.dtype)
        mean, std = (values.to(weights.device, wide) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std, dtype=weights.dtype)

    def __call__(self, pixels: Tensor, size: int) -> Tensor:
        """(B, 3, S, S) of pixels (B, 3, H, W) in [0, 1]."""
        return ((_FITS[self.fit](pixels.to(self.mean.dtype), size) - self.mean) / self.std).to(self.dtype)
