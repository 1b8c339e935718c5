"""How networks are executed: what changes the speed and the rounding, never the mathematics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Execution:
    """``compiled`` networks are compiled at their first call; ``memory_format`` is that of weights and activations."""

    mode: Literal["eager", "compiled"]
    memory_format: Literal["contiguous", "channels_last"]

    def apply(self, networks: Iterable[nn.Module]) -> None:
        """Prepare ``networks`` in place: names of parameters stay."""
        for network in networks:
            if self.memory_format == "channels_last":
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot this argument's type
            if self.mode == "compiled":
                network.compile()
