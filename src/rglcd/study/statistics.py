"""Statistics of votes in which prompts and raters are both a sample: intervals, sign test, Bradley-Terry, agreement, votes needed."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rglcd.evaluation.intervals import CONFIDENCE, Estimate, Z, wilson

NUM_RESAMPLES: Final = 2000

_AT_ONCE: Final = 1 << 22
"""How many weights may be held in memory while resampling."""

_PRIOR: Final = 0.5
"""Wins that each arm is given over each other, so that one which wins every time has a finite strength."""

_MOST_ITERATIONS, _PRECISION = 2000, 1e-9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """N votes between K arms: prompt and rater by number, the two arms by number, and the first one's ``share``: 1, 0, or 1/2 of a tie."""

    prompt: Ints
    rater: Ints
    first: Ints
    second: Ints
    share: Floats

    @property
    def num_prompts(self) -> int:
        return len(np.unique(self.prompt))

    @property
    def num_raters(self) -> int:
        return len(np.unique(self.rater))

    def __len__(self) -> int:
        return len(self.share)


def resampled_weights(votes: Votes, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Iterator[Floats]:
    """Weights (rows, N) of the votes in each resample: the pigeonhole bootstrap (Owen 2007, Ann. Appl. Stat. 1(2), 386-411).

    Prompts and raters are drawn anew, each with replacement, and a vote counts as often as its prompt was drawn times its rater. Its
    variance is a little too large rather than too small; percentiles of a handful of raters are too narrow all the same. With one
    rater (or prompt) the interval is about this one alone.
    """
    rng = np.random.default_rng(seed)
    prompts, raters = (np.unique(values, return_inverse=True)[1] for values in (votes.prompt, votes.rater))
    sizes = votes.num_prompts, votes.num_raters
    rows_at_once = max(1, _AT_ONCE // max(1, len(votes)))
    for start in range(0, num_resamples, rows_at_once):
        rows = min(rows_at_once, num_resamples - start)
        drawn = [rng.multinomial(size, np.full(size, 1 / size), size=rows).astype(np.float64) for size in sizes]
        yield drawn[0][:, prompts] * drawn[1][:, raters]


def win_rate(votes: Votes, *, seed: int) -> Estimate:
    """How often the first arm was preferred to the second, a tie being half a win; all votes between the same two arms.

    A resample without any vote (possible where few raters saw few prompts each) is left out. Votes that are all alike have no spread to
    resample, and are no proof that the next one is like them: their interval is Wilson's (1927), each prompt one vote.
    """
    if np.ptp(votes.share) == 0:
        return wilson(float(votes.share[0]), votes.num_prompts)
    rates = list[Floats]()
    for weights in resampled_weights(votes, seed=seed):
        total = weights.sum(axis=1)
        rates.append((weights @ votes.share)[total > 0] / total[total > 0])
    return _with_quantiles(float(votes.share.mean()), np.concatenate(rates))


@dataclass(frozen=True)
class SignTest:
    """Prompts on which the votes of all raters together favour the first arm, the second, neither; and the two-sided p-value."""

    first: int
    second: int
    even: int
    p: float


def sign_test(votes: Votes) -> SignTest:
    """The exact sign test over prompts, each of which counts once however many voted: P(a fair coin is as one-sided as this).

    Even prompts are left out, as the test has it (Dixon and Mood 1946).
    """
    numbers = np.unique(votes.prompt, return_inverse=True)[1]
    favour = np.bincount(numbers, weights=votes.share - 0.5)
    first, second = int((favour > 1e-9).sum()), int((favour < -1e-9).sum())
    count, fewer = first + second, min(first, second)
    tail = math.fsum(math.exp(_log_binomial(count, k) - count * math.log(2)) for k in range(fewer + 1))
    return SignTest(first, second, len(favour) - count, min(1.0, 2 * tail))


def bradley_terry(votes: Votes, num_arms: int, *, seed: int) -> list[Estimate]:
    """The strength of each arm: P(i preferred to j) = 1 / (1 + exp(s_j - s_i)), their mean 0 (Bradley and Terry 1952).

    A tie is half a win of each. Each arm is given half a win over each other that it met. Intervals as :func:`win_rate`'s.
    """
    pairs = votes.first * num_arms + votes.second
    met = (np.bincount(pairs, minlength=num_arms**2) > 0).reshape(num_arms, num_arms)
    met = met | met.T

    def strengths(weights: Floats) -> Floats:
        wins = np.zeros((len(weights), num_arms, num_arms))
        for pair in np.unique(pairs):
            first, second = divmod(int(pair), num_arms)
            chosen = weights[:, pairs == pair]
            won = chosen @ votes.share[pairs == pair]
            wins[:, first, second] += won
            wins[:, second, first] += chosen.sum(axis=1) - won
        return _strengths(wins + _PRIOR * met)

    (value,) = strengths(np.ones((1, len(votes))))
    drawn = np.concatenate([strengths(weights) for weights in resampled_weights(votes, seed=seed)])
    return [_with_quantiles(float(value[arm]), drawn[:, arm]) for arm in range(num_arms)]


def _strengths(wins: Floats) -> Floats:
    """Maximum-likelihood strengths (B, K) of wins (B, K, K), by minorisation and maximisation (Hunter 2004, Ann. Stat. 32(1))."""
    met = wins + wins.transpose(0, 2, 1)
    won = wins.sum(axis=2)
    worth = np.ones_like(won)
    for _ in range(_MOST_ITERATIONS):
        new = won / (met / (worth[:, :, None] + worth[:, None, :])).sum(axis=2)
        new /= np.exp(np.log(new).mean(axis=1, keepdims=True))
        if np.abs(new / worth - 1).max() < _PRECISION:
            break
        worth = new
    return np.asarray(np.log(new), dtype=np.float64)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Agreement on ``units``, each with the values that its raters gave it, in no order: 1 full, 0 as by chance, below 0 less.

    Krippendorff's alpha for nominal values, from the coincidences of pairable values (Krippendorff 2011, Computing Krippendorff's
    Alpha-Reliability). A unit with one value says nothing. None where no unit has two values, or all values are the same.
    """
    pairable = [Counter(values) for values in units if len(values) > 1]
    totals = sum(pairable, Counter[Hashable]())
    count = totals.total()
    expected = count**2 - sum(n**2 for n in totals.values())
    if expected == 0:
        return None
    agreeing = math.fsum(n * (n - 1) / (values.total() - 1) for values in pairable for n in values.values())
    return 1 - (count - 1) * (count - agreeing) / expected


@dataclass(frozen=True)
class Needed:
    """By how much prompts, raters and with them votes must grow for an interval of ``half_width`` either way."""

    half_width: float
    factor: float
    votes: int
    prompts: int
    raters: int


def needed(rate: Estimate, votes: Votes, *, half_width: float) -> Needed:
    """What the interval of ``rate`` needs to become ``half_width`` either way.

    Prompts, raters and votes grow by one factor: the variance, of prompts, of raters and of single votes, falls by it. More votes of the
    same raters on the same prompts would not do. It never says that fewer would do.
    """
    now = (rate.high - rate.low) / 2
    factor = max(1.0, (now / half_width) ** 2)
    votes_, prompts, raters = (math.ceil(round(factor * n, 9)) for n in (len(votes), votes.num_prompts, votes.num_raters))
    return Needed(half_width, factor, votes_, prompts, raters)


def independent_votes(half_width: float) -> int:
    """Votes without ties, each of another prompt and rater, for an interval of ``half_width`` either way around one half: at the least."""
    return math.ceil((Z / half_width) ** 2 / 4)


def _with_quantiles(value: float, drawn: Floats) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
