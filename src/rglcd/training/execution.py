"""How networks are executed: what changes the speed and the rounding, never the mathematics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import nn

from rglcd.recipe import ExecutionMode, MemoryFormat


@dataclass(frozen=True)
class Execution:
    """``compiled`` networks are compiled at their first call; ``memory_format`` is that of weights and activations."""

    mode: ExecutionMode
    memory_format: MemoryFormat

    def apply(self, networks: Iterable[nn.Module]) -> None:
        """Prepare ``networks`` in place: names of parameters stay."""
        for network in networks:
            _lay_out(network, self.memory_format)
            _compile(network, self.mode)


def _lay_out(network: nn.Module, memory_format: MemoryFormat) -> None:
    match memory_format:
        case "contiguous":
            pass
        case "channels_last":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot this argument's type
        case _:
            assert_never(memory_format)


def _compile(network: nn.Module, mode: ExecutionMode) -> None:
    match mode:
        case "eager":
            pass
        case "compiled":
            network.compile()
        case _:
            assert_never(mode)
