"""Means and win rates of pictures, of which several may be of one caption: intervals over captions, not over pictures.

Pictures of one caption are alike. Counted as independent they make an interval that is too narrow; here captions are resampled,
each with all of its pictures (the cluster bootstrap: Davison and Hinkley 1997, section 3.8).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rglcd.evaluation.intervals import Estimate, wilson
from rglcd.evaluation.statistics import percentile_interval


def mean_by_caption(values: Tensor, captions: Sequence[str], *, seed: int, num_resamples: int = 2000) -> Estimate:
    """The mean of ``values`` (N,), one a picture, with the percentile interval of ``num_resamples`` resamples of the captions.

    Of a single caption the interval is the value alone: there is nothing to resample.
    """
    sums, counts = _by_caption(values, captions)
    are_equal = bool((counts == counts[0]).all())

    def means(drawn: Tensor) -> Tensor:
        return sums[drawn].mean(dim=1) / counts[0] if are_equal else sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1)

    low, high = percentile_interval(means, len(sums), seed=seed, num_resamples=num_resamples)
    return Estimate((sums.sum() / counts.sum()).item(), low, high)


def win_rate_by_caption(ours: Tensor, theirs: Tensor, captions: Sequence[str], *, seed: int) -> Estimate:
    """How often ``ours`` (N,) beats ``theirs`` (N,), pair by pair, a tie being half a win; an interval over captions."""
    return share_by_caption((ours > theirs).double() + 0.5 * (ours == theirs).double(), captions, seed=seed)


def share_by_caption(points: Tensor, captions: Sequence[str], *, seed: int) -> Estimate:
    """The mean of ``points`` (N,), each 0 to 1, with an interval over captions.

    Where each caption has one picture, or all say the same, so that resampling says nothing, it is Wilson's interval with a vote for
    each caption.
    """
    sums, counts = _by_caption(points, captions)
    shares = sums / counts
    if len(shares) == len(points) or bool((shares == shares[0]).all()):
        return wilson(float(shares.mean()), len(shares))
    return mean_by_caption(points, captions, seed=seed)


def _by_caption(values: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sum and number of the values (N,) of each caption (G,), in float64."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    index = torch.tensor([places[caption] for caption in captions])
    zeros = torch.zeros(len(places), dtype=torch.float64)
    return zeros.index_add(0, index, values.double()), zeros.index_add(0, index, torch.ones(len(values), dtype=torch.float64))
