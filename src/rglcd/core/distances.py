"""Distances between the student's prediction and its target, per sample; the caller reduces over the batch.

Shapes: x, y (B,...)    result (B,)    d = number of elements of one sample
"""

import math
from typing import Protocol

from torch import Tensor


class Distance(Protocol):
    """(x, y) -> (B,), zero where the two agree and positive elsewhere."""

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor: ...


def squared_l2(x: Tensor, y: Tensor) -> Tensor:
    """Squared difference, mean over elements."""
    return (x - y).square().flatten(1).mean(dim=1)


def huber(x: Tensor, y: Tensor, *, c: float = 0.001) -> Tensor:
    """sqrt((x - y)^2 + c^2) - c element by element, mean over elements: the released LCM and RG-LCD recipe."""
    return _softened_root((x - y).square(), c).flatten(1).mean(dim=1)


def pseudo_huber(x: Tensor, y: Tensor, *, c: float | None = None) -> Tensor:
    """sqrt(||x - y||^2 + c^2) - c over the whole sample; `c` is 0.00054 sqrt(d) unless given (iCT Sec. 3.3)."""
    return _softened_root(_squared_norm(x, y), _default_c(x) if c is None else c)


def cauchy(x: Tensor, y: Tensor, *, c: float | None = None) -> Tensor:
    """log(1 + ||x - y||^2 / (2 c^2)), robust to the outliers of latents (arXiv 2502.01441); `c` as above."""
    scale = _default_c(x) if c is None else c
    return (_squared_norm(x, y) / (2 * scale**2)).log1p()


def _softened_root(squared: Tensor, c: float) -> Tensor:
    # sqrt(q + c^2) - c, written so that a small q is not lost in the difference of two equal numbers.
    return squared / ((squared + c**2).sqrt() + c)


def _squared_norm(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().flatten(1).sum(dim=1)


def _default_c(x: Tensor) -> float:
    return 0.00054 * math.sqrt(x[0].numel())
