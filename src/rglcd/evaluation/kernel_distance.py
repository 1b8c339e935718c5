"""Kernel distances between two sets of images: the squared maximum mean discrepancy of their features, unbiased, with an interval.

KID is that of Inception's features with a cubic kernel (Binkowski et al., arXiv 1801.01401), CMMD that of CLIP ViT-L/14's at 336 pixels
with a Gaussian one (Jayasumana et al., arXiv 2401.09603). An unbiased distance between two samples of one distribution is zero on
average, so below zero half the time. CMMD's published code takes the biased estimator, as its docstring says
(google-research/cmmd/distance.py); ours is not biased.

Shapes: features (N, D) and (M, D), blocks (N,) and (M,): which block each image belongs to
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from rglcd.evaluation.intervals import Estimate, Z

NUM_BLOCKS: Final = 20
KERNEL_IMAGES: Final = 5000
"""At most the first so many images of each set are compared: the estimate is unbiased at any number, and costs its square."""

_ROWS_AT_ONCE: Final = 1024
_CMMD_SIGMA: Final = 10.0
_CMMD_SCALE: Final = 1000.0

Kernel = Callable[[Tensor, Tensor], Tensor]
"""features (N, D), (M, D) -> (N, M)."""


def cubic(ours: Tensor, theirs: Tensor) -> Tensor:
    """(x . y / D + 1)^3, of KID."""
    return (ours @ theirs.T / ours.shape[1] + 1) ** 3


def gaussian(ours: Tensor, theirs: Tensor) -> Tensor:
    """1000 exp(-|x - y|^2 / (2 * 10^2)), of CMMD, its scale included."""
    squares = ours.square().sum(dim=1)[:, None] + theirs.square().sum(dim=1)[None] - 2 * ours @ theirs.T
    return _CMMD_SCALE * torch.exp(-squares / (2 * _CMMD_SIGMA**2))


def blocks_of(captions: Sequence[str]) -> Tensor:
    """A block number for each image (N,): images of one caption are in one block, for they are not independent."""
    order: dict[str, int] = {}
    return torch.tensor([order.setdefault(caption, len(order)) % NUM_BLOCKS for caption in captions])


@dataclass(frozen=True)
class KernelSample:
    """What kernel distances are measured on: how many images of each set, and over how many blocks of prompts the jackknife goes."""

    num_images: int
    num_reference: int
    num_blocks: int


def kernel_sample(captions: Sequence[str], reference: Sequence[str]) -> KernelSample:
    """Of images of ``captions`` and of real ones of ``reference``."""
    ours, theirs = captions[:KERNEL_IMAGES], reference[:KERNEL_IMAGES]
    blocks = {*blocks_of(ours).tolist(), *blocks_of(theirs).tolist()}
    return KernelSample(len(ours), len(theirs), len(blocks))


def kernel_distance(ours: Tensor, theirs: Tensor, *, kernel: Kernel, our_blocks: Tensor, their_blocks: Tensor) -> Estimate | None:
    """MMD^2 (Gretton et al. 2012, eq. 3, the unbiased one) with the 95 % interval of a jackknife over blocks.

    Each block of both sets is left out in turn (Efron and Stein 1981); the normal interval of the spread of what is left. None where
    there are too few captions to leave any out.
    """
    ours, theirs = ours.double(), theirs.double()
    within_ours, within_theirs = (
        _sums(ours, ours, our_blocks, our_blocks, kernel),
        _sums(theirs, theirs, their_blocks, their_blocks, kernel),
    )
    within_ours -= torch.diag(_diagonal(ours, our_blocks, kernel))
    within_theirs -= torch.diag(_diagonal(theirs, their_blocks, kernel))
    across = _sums(ours, theirs, our_blocks, their_blocks, kernel)
    counts = [torch.bincount(blocks, minlength=NUM_BLOCKS).double() for blocks in (our_blocks, their_blocks)]

    def without(block: int | None) -> float:
        keep = torch.ones(NUM_BLOCKS, dtype=torch.float64)
        if block is not None:
            keep[block] = 0
        n, m = (float(count @ keep) for count in counts)
        if n < 2 or m < 2:
            return math.nan
        inner = float(keep @ within_ours @ keep) / (n * (n - 1)) + float(keep @ within_theirs @ keep) / (m * (m - 1))
        return inner - 2 * float(keep @ across @ keep) / (n * m)

    used = [block for block in range(NUM_BLOCKS) if float(counts[0][block] + counts[1][block])]
    left = torch.tensor([without(block) for block in used], dtype=torch.float64)
    if len(used) < 2 or bool(left.isnan().any()):
        return None
    value = without(None)
    spread = Z * math.sqrt((len(used) - 1) / len(used) * float((left - left.mean()).square().sum()))
    return Estimate(value, value - spread, value + spread)


def _sums(ours: Tensor, theirs: Tensor, our_blocks: Tensor, their_blocks: Tensor, kernel: Kernel) -> Tensor:
    """(K, K): the kernel summed over the pairs of each two blocks; a few rows at a time."""
    columns = torch.nn.functional.one_hot(their_blocks, NUM_BLOCKS).double()
    sums = torch.zeros(NUM_BLOCKS, NUM_BLOCKS, dtype=torch.float64)
    for start in range(0, len(ours), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        sums.index_add_(0, our_blocks[rows], kernel(ours[rows], theirs) @ columns)
    return sums


def _diagonal(features: Tensor, blocks: Tensor, kernel: Kernel) -> Tensor:
    """(K,): the kernel of each image with itself, which an unbiased estimate leaves out, by block."""
    itself = torch.cat([kernel(row[None], row[None]).view(1) for row in features])
    return torch.zeros(NUM_BLOCKS, dtype=torch.float64).index_add_(0, blocks, itself)
