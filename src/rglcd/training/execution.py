"""How networks are executed: what changes the speed and the rounding, never the mathematics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, assert_never

import torch
from torch import nn

from rglcd.recipe import ExecutionMode, MemoryFormat

COMPILED_BUCKET_MIB: Final = 256
"""Of DDP's buckets under a compiled network. Its graph is cut where a bucket is full, so that gradients travel while others are computed:
by torch's 25 MiB a UNet of 3.2 GiB would be 130 graphs, each compiled by itself and none fused with the next."""

_MOST_FORMS: Final = 64


@dataclass(frozen=True)
class Execution:
    """``compiled`` networks are compiled at their first call; ``memory_format`` is that of weights and activations."""

    mode: ExecutionMode
    memory_format: MemoryFormat

    @property
    def bucket_mib(self) -> int | None:
        """How many MiB of gradients are averaged over the ranks at once; None: torch's own choice."""
        return COMPILED_BUCKET_MIB if self.mode == "compiled" else None

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
            # All UNets have one forward: 8 compiled forms of it, dynamo's own limit, are soon reached, and others would run eagerly.
            torch._dynamo.config.recompile_limit = max(_MOST_FORMS, torch._dynamo.config.recompile_limit)
            # By itself dynamo takes the second size that it meets, the target's after the teacher's twice as many rows, for a sign that
            # sizes vary, and compiles for any. Here each network has the sizes that the recipe gives it, in every step.
            network.compile(dynamic=False)
        case _:
            assert_never(mode)
