"""How many threads a CPU computes with: networks too small to keep two of them busy are given one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

SMALL: Final = 64 << 20
"""Bytes of a teacher's weights, all its networks together, up to which one thread computes."""


@contextmanager
def one_thread_if_small(teacher: Path, device: torch.device) -> Iterator[int]:
    """Within this context a CPU computes with one thread if the networks of the folder ``teacher`` are small.

    Gives how many such computations the threads allowed until then are enough for: 1 where nothing was changed. Threads that share a
    small network's operations spend much of their time waiting for one another, and wait by spinning: the toy teacher's student takes
    6.9 steps a second with two threads and 5.0 with one, but 1.6 and 4.8 on a machine with one other busy process. Sums are also added up
    in another order by another number of threads, so with one the same command gives the same bits whatever the number of cores.
    """
    allowed = torch.get_num_threads()
    if device.type != "cpu" or allowed == 1 or sum(path.stat().st_size for path in teacher.rglob("*.safetensors")) > SMALL:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield allowed
    finally:
        torch.set_num_threads(allowed)
