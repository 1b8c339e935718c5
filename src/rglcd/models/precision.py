"""Minimum precision of scores: float32, whatever the precision of the networks that give them."""

import torch
from torch import Tensor


def widened(dtype: torch.dtype) -> torch.dtype:
    """float32, or ``dtype`` if that keeps more."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or in its own dtype if that keeps more.

    A bfloat16 score has eight significant bits: images of clearly different quality may get equal scores.
    """
    return tensor.to(widened(tensor.dtype))
