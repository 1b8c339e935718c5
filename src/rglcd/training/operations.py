"""Counting the floating point operations of a step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
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
        self.total += flops_of(func, args, kwargs or {}, result)
        return result


class _AlwaysFused(TorchFunctionMode):
    """On tensors without values torch takes attention apart; on a CPU or a GPU it is one kernel, whose backward pass counts otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = kwargs or {}
        # diffusers' newer networks, FLUX among them, name all arguments.
        if func is scaled_dot_product_attention and (args[0] if args else named["query"]).is_meta:
            return _fused_attention(*args, **named)
        return func(*args, **named)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function of the same arguments, by the kernel of a CPU, which is the one that has a form without values."""
    repeats = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    key, value = (tensor.repeat_interleave(repeats, dim=-3) if repeats > 1 else tensor for tensor in (key, value))
    attend = _aten._scaled_dot_product_flash_attention_for_cpu
    attended: Tensor = attend(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended


def count_flops(work: Callable[[], object]) -> int:
    """Floating point operations of ``work``, backward passes in it included; the same on tensors that have values and that have none."""
    count = _FlopCount()  # type: ignore[no-untyped-call]  # its base class has no types
    with torch.compiler.set_stance("force_eager"), _AlwaysFused(), count:
        work()
    return int(count.total)


def flops_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Floating point operations of one call, as a ``TorchDispatchMode`` sees it: 0 of all but convolutions, matrix products, attention."""
    formula = _FORMULAS.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def flops_of_step(distiller: Distiller) -> int:
    """Operations of one whole step, reward included. The distiller has trained one step afterwards: throw it away."""
    return count_flops(lambda: distiller.step(0))
