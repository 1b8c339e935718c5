"""Exponential moving average of the student: LCD's target network, and the weights that are evaluated.

Parameters are lists of tensors of any shape, in the same order and of the same dtypes for target and source.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(target: Iterable[Tensor], source: Iterable[Tensor], decay: float) -> None:
    """target <- decay * target + (1 - decay) * source, in place, in one fused pass over all the parameters."""
    # theta^- <- mu theta^- + (1 - mu) theta: LCM Algorithm 1
    torch._foreach_lerp_(list(target), [tensor.detach() for tensor in source], 1.0 - decay)


@torch.no_grad()
def copy_buffers(target: nn.Module, source: nn.Module) -> None:
    """Buffers are not averaged: those of `target` become those of `source`, in place."""
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)
