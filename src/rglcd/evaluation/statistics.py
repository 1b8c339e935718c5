"""Statistics of per-image values: sharpness, saturation, diversity, and the ends of a bootstrap interval."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rglcd.evaluation.intervals import CONFIDENCE

_RESAMPLES_AT_ONCE = 1 << 22
"""How many values may be held in memory while resampling."""


def percentile_interval(statistic: Callable[[Tensor], Tensor], count: int, *, seed: int, num_resamples: int) -> tuple[float, float]:
    """The ends of the percentile interval of ``statistic`` over ``num_resamples`` resamples (R, count) of the numbers below ``count``.

    ``statistic`` gives the float64 values (R,) of some of them at a time (Efron 1979). The same seed gives the same interval.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_at_once, values = max(1, _RESAMPLES_AT_ONCE // count), []
    for start in range(0, num_resamples, rows_at_once):
        rows = min(rows_at_once, num_resamples - start)
        values.append(statistic(torch.randint(count, (rows, count), generator=generator)))
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.cat(values).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def high_frequency_energy(pixels: Tensor) -> Tensor:
    """(B,) root mean square of what a 3 x 3 binomial blur takes from the grey image of ``pixels`` (B, 3, H, W).

    Zero for a flat image, and high for edges and for the fine noise that an over-optimised reward leaves.
    """
    grey = pixels.mean(dim=1, keepdim=True)
    row = torch.tensor([0.25, 0.5, 0.25], dtype=pixels.dtype, device=pixels.device)
    kernel = torch.outer(row, row)[None, None]
    blurred = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernel)
    return (grey - blurred).square().mean(dim=(1, 2, 3)).sqrt()


def diversity(features: Tensor, captions: Sequence[str]) -> float | None:
    """How far apart the images of one caption are: the mean distance between the features (N, D) of two of them.

    Over all pairs of images with the same caption; None where no caption has two. It falls when a student draws one picture for
    every noise, which is how an over-optimised reward may end.
    """
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    distances = [torch.pdist(features[group].double()) for group in rows.values() if len(group) > 1]
    return torch.cat(distances).mean().item() if distances else None


def saturation(pixels: Tensor) -> Tensor:
    """(B,) how far the colours of ``pixels`` (B, 3, H, W) are from grey: the mean of max(R, G, B) - min(R, G, B), in [0, 1]."""
    return (pixels.amax(dim=1) - pixels.amin(dim=1)).mean(dim=(1, 2))
