"""What a pass of a network costs, as a line of the number of samples, and the operations of one sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rglcd.planning.counting import CudaPolicy, LiveBytes, backward

_FEW, _MANY = 4, 8
"""Counted at these numbers of samples: the cost of more lies on the line through both."""


@dataclass(frozen=True)
class Line:
    """Bytes, or operations, = fixed + each x samples."""

    fixed: float = 0.0
    each: float = 0.0

    def at(self, samples: float) -> float:
        """Those of ``samples``."""
        return self.fixed + self.each * samples

    def __sub__(self, other: "Line") -> "Line":
        return Line(self.fixed - other.fixed, self.each - other.each)

    @property
    def for_one(self) -> "Line":
        """Those of one sample, whatever the batch."""
        return Line(self.at(1), 0.0)

    @classmethod
    def through(cls, few: float, many: float) -> "Line":
        """The line of what was counted for :data:`_FEW` samples and for :data:`_MANY`."""
        each = (many - few) / (_MANY - _FEW)
        return cls(few - _FEW * each, each)


class _Counted(NamedTuple):
    forward_peak: int
    kept: int
    backward_peak: int
    flops: int


@dataclass(frozen=True)
class TrainedPass:
    """A pass that is differentiated: what is kept for backward, the peak of either half, operations of a sample."""

    kept: Line
    forward_peak: Line
    backward_peak: Line
    flops: float

    @property
    def peak(self) -> tuple[Line, Line]:
        """Of both halves; which is higher depends on the number of samples."""
        return self.forward_peak, self.backward_peak


@dataclass(frozen=True)
class FrozenPass:
    """A pass without gradient: its peak, and the operations of a sample."""

    peak: Line
    flops: float


def trained_pass(
    run: Callable[[int], tuple[Tensor, Tensor | None]], *, autocast: torch.dtype, parameters: list[nn.Parameter]
) -> TrainedPass:
    """The cost of ``run``, which is given a number of samples and gives its output, and the input to differentiate by, if not weights.

    Gradients of ``parameters`` count only until they are complete: where they lie after that is the caller's to say.
    """
    hooks = [parameter.register_post_accumulate_grad_hook(_drop_gradient) for parameter in parameters]
    few, many = (_count_trained(run, samples, autocast) for samples in (_FEW, _MANY))
    for hook in hooks:
        hook.remove()
    forward_peak, kept, backward_peak, flops = (Line.through(*pair) for pair in zip(few, many, strict=True))
    return TrainedPass(kept, forward_peak, backward_peak, flops.at(1))


def _count_trained(run: Callable[[int], tuple[Tensor, Tensor | None]], samples: int, autocast: torch.dtype) -> _Counted:
    with LiveBytes() as live:
        with CudaPolicy(autocast):
            output, to = run(samples)
        forward_peak, kept = live.peak, live.now
        live.peak = live.now
        backward(output, autocast, to=to)
    return _Counted(forward_peak, kept, live.peak, live.flops)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def frozen_pass(run: Callable[[int], object], *, autocast: torch.dtype = torch.float32) -> FrozenPass:
    """The cost of ``run`` without gradient."""

    def count(samples: int) -> tuple[int, int]:
        with torch.no_grad(), LiveBytes() as live, CudaPolicy(autocast):
            run(samples)
        return live.peak, live.flops

    peak, flops = (Line.through(*pair) for pair in zip(count(_FEW), count(_MANY), strict=True))
    return FrozenPass(peak, flops.at(1))
