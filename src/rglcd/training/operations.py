"""Counting the floating point operations of a step."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rglcd.training.distiller import Distiller

_aten: Any = torch.ops.aten
_FORMULAS = {
    **flop_registry,
    # torch counts attention's fused kernels of a GPU and not the CPU's: a step would cost less where it is slower.
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[_aten._scaled_dot_product_flash_attention_backward],
}


class _FlopCount(TorchDispatchMode):
    """Adds up torch's own formulas (convolutions, matrix products) for every operation that runs, backward included.

    torch's ``FlopCounterMode`` also follows modules, with hooks that do not bear the ``autograd.grad`` of the reward.
    """

    total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(work: Callable[[], object]) -> int:
    """Floating point operations of ``work``, backward passes in it included."""
    count = _FlopCount()  # type: ignore[no-untyped-call]  # its base class has no types
    with count:
        work()
    return int(count.total)


def flops_of_step(distiller: Distiller) -> int:
    """Operations of one whole step, reward included. The distiller has trained one step afterwards: throw it away."""
    return count_flops(lambda: distiller.step(0))
