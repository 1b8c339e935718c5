"""What an operation makes of tensors without values, remembered: networks repeat their shapes, block by block.

torch finds the shape of most results by running the operation's definition in Python, which takes ten times as long.
"""

from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from rglcd.training.operations import flops_of


class Outcome(NamedTuple):
    """What an operation returned, and how many floating point operations that took."""

    result: Any
    flops: int


def outcome(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """Of ``func``, an operation as a ``TorchDispatchMode`` sees it; run unless it made new tensors of the same shapes before."""
    signature = _signature(func, args, kwargs) if _makes_new_tensors(func) else None
    known = None if signature is None else _KNOWN.get(signature)
    if known is not None:
        return Outcome(_with_tensors(known.result), known.flops)
    result = func(*args, **kwargs)
    made = Outcome(result, flops_of(func, args, kwargs, result))
    if signature is not None and _fills_memory_of_its_own(result, (args, kwargs)):
        _KNOWN[signature] = Outcome(_without_tensors(result), made.flops)
    return made


def storages(values: Any) -> list[Any]:
    """Those of all tensors in ``values``: tensors, others, and lists, tuples and dicts of them."""
    found, left = [], [values]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            found.append(value.untyped_storage())
        elif isinstance(value, (list, tuple)):
            left.extend(value)
        elif isinstance(value, dict):
            left.extend(value.values())
    return found


@dataclass(frozen=True)
class _Shape:
    """A tensor that fills its memory, in place of the tensor."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Shape":
        return cls(tensor.size(), tensor.stride(), tensor.dtype)

    def new(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


_PLAIN: Final = (bool, int, float, str, NoneType, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Of arguments that are no tensors: types that compare by value. Others are objects of torch's own, such as the profiler's."""

_KNOWN: Final[dict[object, Outcome]] = {}
"""By :func:`_signature`; with :class:`_Shape` for tensors."""


def _signature(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """All that decides the shapes of what ``func`` makes; ``None`` where a tensor has values, or an argument is of no plain type."""
    try:
        return func, _described(args), _described(tuple(kwargs.items()))
    except _NotPlainError:
        return None


class _NotPlainError(Exception):
    pass


def _described(value: Any) -> object:
    if isinstance(value, Tensor) and value.is_meta:
        return _Shape.of(value)
    if isinstance(value, (list, tuple)):
        return tuple(_described(one) for one in value)
    if isinstance(value, _PLAIN):
        return type(value), value  # 1 and 1.0 are equal, and make tensors of other types
    raise _NotPlainError


@cache
def _makes_new_tensors(func: Any) -> bool:
    """By what torch says of ``func``: it changes nothing, and returns no view. (Of ``_unsafe_view`` it does not say so.)"""
    return not func._schema.is_mutable and all(each.alias_info is None for each in func._schema.returns)


def _fills_memory_of_its_own(result: Any, given: Any) -> bool:
    """Whether all tensors of ``result`` are without values, share nothing with those of ``given``, and are all of their memory."""
    if isinstance(result, (list, tuple)):
        return all(_fills_memory_of_its_own(one, given) for one in result)
    if not isinstance(result, Tensor):
        return True
    storage = result.untyped_storage()
    is_new = storage._cdata not in {each._cdata for each in storages(given)}
    return result.is_meta and is_new and storage.nbytes() == _Shape.of(result).new().untyped_storage().nbytes()


def _without_tensors(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(_without_tensors(one) for one in result)
    return _Shape.of(result) if isinstance(result, Tensor) else result


def _with_tensors(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(_with_tensors(one) for one in result)
    return result.new() if isinstance(result, _Shape) else result
