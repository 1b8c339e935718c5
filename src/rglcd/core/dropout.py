"""Dropout masks as a function of the sample's seed, so that student and target drop the same elements (iCT Sec. 3.1).

Shapes: seeds (B,) int64    like (B,...)    mask (B,...) bool    n = number of elements of one sample
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def keep_mask(seeds: Tensor, like: Tensor, *, layer: int, rate: float) -> Tensor:
    """The mask of what layer number `layer` keeps of each sample: an element is dropped with probability `rate` in [0, 1).

    A generator would have to be rewound for the second network, and would draw other masks for a batch split over ranks
    than for the whole batch. A hash of (seed, layer, place) needs no rewinding and is the same on every device.
    """
    num_elements = like[0].numel()
    places = scrambled(torch.arange(num_elements, device=like.device))
    keys = scrambled((seeds + layer * _GOLDEN) & _WORD)
    words = scrambled(places[None, :] ^ keys[:, None])
    return (words >= round(rate * 2**32)).view_as(like)


def scrambled(words: Tensor) -> Tensor:
    """`words` (int64) under a permutation of the 32-bit words: each output bit depends on all the input's."""
    # An integer hash found by exhaustive search (github.com/skeeto/hash-prospector); both factors are below 2^31, so
    # that no product overflows int64.
    words = ((words ^ (words >> 16)) * 0x21F0AAAD) & _WORD
    words = ((words ^ (words >> 15)) * 0x735A2D97) & _WORD
    return words ^ (words >> 15)
