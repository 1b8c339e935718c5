"""In which precision numbers are told apart."""

import torch
from torch import Tensor


def widened(dtype: torch.dtype) -> torch.dtype:
    """float32, or ``dtype`` if that keeps more."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or in its own dtype if that keeps more.

    A score of bfloat16 has eight bits: two pictures that people tell apart easily may get the same one.
    """
    return tensor.to(widened(tensor.dtype))
