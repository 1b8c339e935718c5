"""TF32: a GPU's multiplications of float32 matrices with inputs rounded to 10 bits, several times faster."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Within this context float32 matrices are multiplied in TF32 on a GPU, as torch has convolutions by default. A CPU is left alone.

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
