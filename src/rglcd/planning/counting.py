"""Bytes and operations of a network on ``meta`` tensors, as CUDA would have them: autocast's policy, flash attention.

Tensors on ``meta`` have shapes and no values, so a network of any size runs on any machine in seconds; torch has no autocast
for them, and without a GPU none for CUDA, so its policy is played here.
"""

import weakref
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from rglcd.planning.outcomes import outcome, storages

GIB: Final = 2**30

_F: Any = nn.functional
_ATTENTION: Final = _F.scaled_dot_product_attention

# torch's documentation, "Autocast Op Reference", section "CUDA Op-Specific Behavior": what the networks here call of it.
_LOWERED: Final = frozenset(
    {
        _F.linear, _F.conv1d, _F.conv2d, _F.conv3d, _F.conv_transpose2d, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
        torch.addbmm, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm,
        _ATTENTION,
    }
)  # fmt: skip
_WIDENED: Final = frozenset(
    {
        _F.group_norm, _F.layer_norm, torch.group_norm, torch.layer_norm, _F.softmax, torch.softmax, Tensor.softmax, _F.log_softmax,
        _F.mse_loss, _F.l1_loss, _F.smooth_l1_loss, _F.huber_loss, _F.kl_div, _F.cosine_similarity, _F.interpolate, torch.exp, Tensor.exp,
        torch.log, Tensor.log, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.sum, Tensor.sum, torch.norm,
    }
)  # fmt: skip


class CudaPolicy(TorchFunctionMode):
    """Operations as on a GPU: attention by the flash kernel, and under ``autocast`` inputs cast as CUDA's policy has it.

    As there, a weight that trains is cast once and the copy kept until the mode ends; others are cast at each use.
    ``keeps_casts``: what is recomputed in a backward pass has a context of its own for each block, so no cast outlives its block.
    """

    def __init__(self, autocast: torch.dtype, *, keeps_casts: bool = True) -> None:
        super().__init__()
        self._dtype = None if autocast == torch.float32 else autocast
        self._keeps_casts = keeps_casts
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __exit__(self, *args: Any) -> None:
        self._casts.clear()
        super().__exit__(*args)  # type: ignore[no-untyped-call]  # torch gives it no types

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._dtype is not None and func in _LOWERED:
            args, kwargs = tree_map(self._lowered, args), tree_map(self._lowered, kwargs)
        elif self._dtype is not None and func in _WIDENED:
            args, kwargs = tree_map(_widened, args), tree_map(_widened, kwargs)
        return _flash_attention(*args, **kwargs) if func is _ATTENTION else func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == self._dtype:
            return value
        if not (self._keeps_casts and value.requires_grad and value.is_leaf):
            return value.to(self._dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = (value, value.to(self._dtype))
        return self._casts[id(value)][1]


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
    """The output; saved for backward are q, k, v, it, and a float32 log-sum-exp for each row of each head.

    A mask (of frozen text towers, which keep nothing) is taken by other kernels of the same order of memory.
    """
    output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return output


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made while it is on that are alive, now and at most; and the operations that made them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.now = self.peak = self.flops = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, flops = outcome(func, args, kwargs or {})
        self.flops += flops
        # A view of what was there before, such as a transposed weight, is no new memory.
        given = {storage._cdata for storage in storages((args, kwargs))}
        for storage in storages(result):
            if storage._cdata not in self._known and storage._cdata not in given:
                self._see(storage)
        return result

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def backward(output: Tensor, autocast: torch.dtype, *, to: Tensor | None = None) -> None:
    """Back-propagate ones from ``output`` as on a GPU, to the leaves or to the tensor ``to``; gradients are forgotten.

    ``Tensor.backward`` and ``autograd.grad`` switch modes off while they run, and what is recomputed in them needs the policy.
    """
    inputs = () if to is None else (to,)
    with CudaPolicy(autocast, keeps_casts=False):
        _engine_run_backward(
            (output,), (torch.ones_like(output),), False, False, inputs, allow_unreachable=True, accumulate_grad=to is None
        )
