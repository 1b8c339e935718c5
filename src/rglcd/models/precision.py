"""How precisely numbers are computed and kept: scores in float32 at least, and a GPU's products of float32 matrices in TF32 by choice."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

DrawingPrecision = Literal["float32", "tf32", "bfloat16"]
"""The values of ``evaluation.precision``."""


def widened(dtype: torch.dtype) -> torch.dtype:
    """float32, or ``dtype`` if that keeps more."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or in its own dtype if that keeps more.

    A bfloat16 score has eight significant bits: images of clearly different quality may get equal scores.
    """
    return tensor.to(widened(tensor.dtype))


def drawing_dtype(precision: DrawingPrecision) -> torch.dtype:
    """Of the weights of networks that draw with ``evaluation.precision``: TF32 is a way to multiply float32."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def drawing_products(precision: DrawingPrecision, device: torch.device) -> AbstractContextManager[None]:
    """The context in which networks draw with ``evaluation.precision``: in TF32 unless it is float32."""
    return nullcontext() if precision == "float32" else tf32(device)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, say: as the settings have it."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Within this context matrix products of float32 on a GPU have TF32's 10 bits of mantissa, as its convolutions have anyway.

    On an A100 they are eight times as fast. A CPU's stay as they are: what they compute is compared bit for bit.
    https://docs.pytorch.org/docs/stable/generated/torch.set_float32_matmul_precision.html
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
