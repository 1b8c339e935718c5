import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest, norm

from rglcd.evaluation.intervals import Estimate
from rglcd.study.statistics import (
    Votes,
    bradley_terry,
    independent_votes,
    krippendorff_alpha,
    needed,
    resampled_weights,
    sign_test,
    win_rate,
)

# Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section C: four observers, twelve units, values missing.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
# The worked example of https://en.wikipedia.org/wiki/Krippendorff%27s_alpha: three coders, fifteen units.
CODERS = ["*****34121133*3", "1*213343*******", "**21344*21133*4"]


def units(rows: list[list[int | None]]) -> list[list[int]]:
    return [[value for value in column if value is not None] for column in zip(*rows, strict=True)]


def crossed(num_prompts: int, num_raters: int, share: np.ndarray) -> Votes:
    """Every rater on every prompt, two arms."""
    prompt, rater = (grid.ravel() for grid in np.meshgrid(np.arange(num_prompts), np.arange(num_raters), indexing="ij"))
    arms = np.zeros(len(prompt), dtype=np.int64)
    return Votes(prompt, rater, arms, arms + 1, share.ravel().astype(np.float64))


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    assert krippendorff_alpha(units(OBSERVERS)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_that_of_the_encyclopedias_example() -> None:
    rows = [[None if value == "*" else int(value) for value in coder] for coder in CODERS]
    assert krippendorff_alpha(units(rows)) == pytest.approx(0.691, abs=5e-4)


def test_alpha_is_one_for_full_agreement_and_undefined_where_it_says_nothing() -> None:
    assert krippendorff_alpha([[1, 1], [0, 0, 0]]) == 1
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [0]]) is None
    assert krippendorff_alpha([]) is None


@pytest.mark.parametrize(("first", "second"), [(0, 1), (5, 5), (12, 3), (3, 30), (400, 350)])
def test_the_sign_test_is_the_exact_binomial(first: int, second: int) -> None:
    share = np.array([1.0] * first + [0.0] * second + [0.5] * 4)
    test = sign_test(crossed(len(share), 1, share[:, None]))
    assert (test.first, test.second, test.even) == (first, second, 4)
    assert test.p == pytest.approx(binomtest(first, first + second).pvalue, rel=1e-9)


def test_the_sign_test_counts_a_prompt_once_however_many_voted() -> None:
    once, often = (sign_test(crossed(6, raters, np.ones((6, raters)))) for raters in (1, 50))
    assert once == often


def test_a_resamples_weight_is_the_product_of_a_prompts_and_a_raters_count() -> None:
    votes = crossed(5, 4, np.ones((5, 4)))
    (weights,) = resampled_weights(votes, seed=3, num_resamples=50)
    grids = weights.reshape(50, 5, 4)
    assert (weights == weights.round()).all()
    assert (grids.sum(axis=(1, 2)) == 20).all()
    assert all(np.linalg.matrix_rank(grid) == 1 for grid in grids)


def test_the_interval_covers_the_true_rate_where_prompts_and_raters_differ() -> None:
    """Votes of a probit model with effects of prompts and of raters: of 100 studies about 95 % must cover, not the 60 % of an
    interval that takes votes for independent."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    mean, spread = 0.3, (0.8, 0.6)
    truth = float(norm.cdf(mean / math.sqrt(1 + sum(value**2 for value in spread))))
    for study in range(100):
        prompts, raters = rng.normal(0, spread[0], (25, 1)), rng.normal(0, spread[1], (1, 12))
        votes = crossed(25, 12, (rng.normal(0, 1, (25, 12)) < mean + prompts + raters).astype(float))
        rate = win_rate(votes, seed=study)
        covered += rate.low <= truth <= rate.high
        naive += abs(rate.value - truth) <= 1.96 * math.sqrt(rate.value * (1 - rate.value) / len(votes))
    assert covered / 100 >= 0.9
    assert naive / 100 < 0.7


def test_a_tie_is_half_a_win_and_the_same_seed_gives_the_same_interval() -> None:
    mixed = crossed(4, 3, np.arange(12).reshape(4, 3) % 3 / 2)
    assert win_rate(mixed, seed=1).value == 0.5
    assert win_rate(mixed, seed=1) == win_rate(mixed, seed=1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_votes_that_are_all_alike_are_no_certainty(share: float) -> None:
    rate = win_rate(crossed(10, 3, np.full((10, 3), share)), seed=0)
    wilson = binomtest(round(10 * share), 10).proportion_ci(method="wilson")
    assert (rate.value, rate.low, rate.high) == pytest.approx((share, wilson.low, wilson.high), abs=1e-6)


def between(wins: np.ndarray) -> Votes:
    """Votes of one rater on a prompt each, ``wins[i, j]`` of arm i over arm j."""
    rows = [(i, j, 1.0) for i, j in np.ndindex(*wins.shape) for _ in range(int(wins[i, j])) if i < j]
    rows += [(j, i, 0.0) for i, j in np.ndindex(*wins.shape) for _ in range(int(wins[i, j])) if i > j]
    first, second, share = (np.array(column) for column in zip(*rows, strict=True))
    return Votes(np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64), first, second, share.astype(float))


def test_bradley_terry_is_the_likelihoods_maximum() -> None:
    wins = np.array([[0, 30, 45], [20, 0, 28], [5, 22, 0]])
    strengths = [one.value for one in bradley_terry(between(wins), 3, seed=0)]
    counted = wins + 0.5 * (1 - np.eye(3))

    def loss(free: np.ndarray) -> float:
        s = np.append(free, -free.sum())
        return -float((counted * -np.log1p(np.exp(s[None, :] - s[:, None]))).sum())

    best = minimize(loss, np.zeros(2), tol=1e-10).x
    assert strengths == pytest.approx([*best, -best.sum()], abs=1e-4)
    assert sum(strengths) == pytest.approx(0, abs=1e-9)


def test_an_arm_that_wins_every_time_has_a_finite_strength_and_a_fair_interval() -> None:
    wins = np.array([[0, 20, 20], [0, 0, 10], [0, 10, 0]])
    best, *others = bradley_terry(between(wins), 3, seed=0)
    assert math.isfinite(best.high)
    assert best.low > max(other.high for other in others)


def test_votes_needed_grow_with_the_square_of_the_precision_and_never_shrink() -> None:
    votes = crossed(10, 4, np.ones((10, 4)))
    wide = needed(Estimate(0.6, 0.5, 0.7), votes, half_width=0.05)
    assert (wide.votes, wide.prompts, wide.raters) == (160, 40, 16)
    assert needed(Estimate(0.6, 0.59, 0.61), votes, half_width=0.05).votes == len(votes)


def test_independent_votes_are_the_textbooks_385() -> None:
    assert independent_votes(0.05) == 385
