"""Random whole numbers for drawings: SplitMix64 (Steele, Lea, Flood 2014), which counts by its constant.

No library's generator: every machine and every numpy draws the same.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

WORDS: Final = 80  # random words for each seed: 8 for the drawing, 72 for its flaws
_MASK_64: Final = (1 << 64) - 1


def random_words(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """`WORDS` random words for each seed, (B, 80); two seeds share none."""
    first = np.array([seed * WORDS & _MASK_64 for seed in seeds], dtype=np.uint64)[:, None]
    counts = np.arange(1, WORDS + 1, dtype=np.uint64)
    state = np.asarray((first + counts) * np.uint64(0x9E3779B97F4A7C15), dtype=np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def between(words: NDArray[np.uint64], low: NDArray[np.int32] | int, high: NDArray[np.int32] | int) -> NDArray[np.int32]:
    """Whole numbers in [low, high], as evenly as 32 random bits allow."""
    span = np.asarray(high - low + 1).astype(np.uint64)
    return np.asarray((((words >> np.uint64(32)) * span) >> np.uint64(32)).astype(np.int32) + low, dtype=np.int32)
