"""A value with its confidence interval, and Wilson's interval of a share: without torch, for those who only count votes too."""

import math
from dataclasses import dataclass
from typing import Final

CONFIDENCE: Final = 0.95
"""The confidence level of every interval."""

Z: Final = 1.959964
"""Normal quantile of :data:`CONFIDENCE`, two-sided."""


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(rate: float, n: int) -> Estimate:
    """Wilson's interval (1927) of a share ``rate`` of ``n`` votes."""
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    spread = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return Estimate(rate, max(centre - spread, 0.0), min(centre + spread, 1.0))
