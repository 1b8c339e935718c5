"""The order in which samples are seen: a pure function of a seed and of how many were seen before.

Epochs follow one another without end, each a permutation of all samples. So the place in the order is one integer,
the same for any number of ranks: a rank takes its slice of what the whole world sees in a step.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sample_indices(seed: int, num_samples: int, *, start: int, count: int) -> Tensor:
    """Indices (count,), int64, of the samples at places [start, start + count) of the endless order.

    ``start`` is the number of samples seen before, over all ranks. No sample is seen twice in an epoch, and none is left out.
    """
    if num_samples < 1:
        raise ValueError("an order needs at least one sample")
    pieces, place, end = [np.empty(0, dtype=np.int64)], start, start + count
    while place < end:
        epoch, position = divmod(place, num_samples)
        piece = _permutation(seed, epoch, num_samples)[position : position + end - place]
        pieces.append(piece)
        place += len(piece)
    return torch.from_numpy(np.concatenate(pieces))


@lru_cache(maxsize=2)  # a batch may lie across the border of two epochs
def _permutation(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
