"""Intervals over captions: right where pictures of one caption are alike, and the old ones where each caption has one picture."""

from dataclasses import astuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rglcd.evaluation.intervals import wilson
from rglcd.evaluation.paired_statistics import mean_by_caption, win_rate_by_caption


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def each_its_own(values: torch.Tensor) -> list[str]:
    return [str(number) for number in range(len(values))]


def test_interval_over_captions_of_one_picture_agrees_with_the_normal_approximation() -> None:
    values = noise(400) * 2 + 5
    found = mean_by_caption(values, each_its_own(values), seed=0, num_resamples=4000)
    half = 1.96 * values.std().item() / 20
    assert found.value == pytest.approx(values.mean().item())
    assert (found.high - found.value, found.value - found.low) == pytest.approx((half, half), rel=0.1)


def test_interval_depends_only_on_values_captions_and_seed() -> None:
    values = noise(50)
    one, again, other = (mean_by_caption(values, each_its_own(values), seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_interval_of_constant_values_has_no_width() -> None:
    found = mean_by_caption(torch.full((9,), 0.25), ["a", "b", "c"] * 3, seed=0)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_drawing_every_picture_again_narrows_no_interval() -> None:
    """A copy of a picture is no news: whatever the captions, thrice the same pictures give the same interval."""
    values, others, captions = noise(48), noise(48, seed=1), [str(number % 16) for number in range(48)]
    for names in (captions, each_its_own(values)):
        once, thrice = (astuple(mean_by_caption(values.repeat(n), names * n, seed=0)) for n in (1, 3))
        assert thrice == pytest.approx(once, abs=1e-12)
    once, thrice = (astuple(win_rate_by_caption(values.repeat(n), others.repeat(n), captions * n, seed=0)) for n in (1, 3))
    assert thrice == pytest.approx(once, abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_win_rate_of_one_picture_a_caption_has_wilsons_interval(wins: int, losses: int) -> None:
    if wins + losses == 0:
        return
    ours, theirs = torch.tensor([1.0] * wins + [0.0] * losses), torch.tensor([0.0] * wins + [1.0] * losses)
    expected = stats.binomtest(wins, wins + losses).proportion_ci(0.95, method="wilson")
    found = win_rate_by_caption(ours, theirs, each_its_own(ours), seed=0)
    assert found.value == pytest.approx(wins / (wins + losses))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_tie_is_half_a_win() -> None:
    scores = noise(40)
    assert win_rate_by_caption(scores, scores, each_its_own(scores), seed=0).value == 0.5
    found = win_rate_by_caption(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), ["a", "b"], seed=0)
    assert found.value == 0.75


def test_the_order_of_pictures_does_not_matter_to_the_mean_nor_much_to_the_interval() -> None:
    values, captions = noise(60), [str(number % 12) for number in range(60)]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1)).tolist()
    one, other = mean_by_caption(values, captions, seed=0), mean_by_caption(values[order], [captions[i] for i in order], seed=0)
    assert one.value == pytest.approx(other.value, abs=1e-12)
    assert one.low == pytest.approx(other.low, abs=0.05)


def test_intervals_over_captions_cover_the_truth_where_those_over_pictures_do_not() -> None:
    """Thirty captions of eight pictures that share most of their value: over 150 draws the truth, 0, lies in 19 of 20 intervals."""
    captions = [str(number) for number in range(30) for _ in range(8)]
    covered = {"captions": 0, "pictures": 0}
    for seed in range(150):
        values = (noise(30, 1, seed=seed) + 0.3 * noise(30, 8, seed=1000 + seed)).flatten()
        for name, found in (
            ("captions", mean_by_caption(values, captions, seed=seed, num_resamples=400)),
            ("pictures", mean_by_caption(values, each_its_own(values), seed=seed, num_resamples=400)),
        ):
            covered[name] += found.low <= 0 <= found.high
    assert covered["captions"] >= 0.89 * 150
    assert covered["pictures"] < 0.65 * 150


def test_a_win_rate_and_the_other_sides_add_up_to_one() -> None:
    a, b, captions = noise(48), noise(48, seed=1).round(), [str(number % 16) for number in range(48)]
    ours, theirs = win_rate_by_caption(a.round(), b, captions, seed=0), win_rate_by_caption(b, a.round(), captions, seed=0)
    assert ours.value + theirs.value == pytest.approx(1)
    a = a.round()
    assert ours.value == pytest.approx(float(((a > b).double() + 0.5 * (a == b)).mean())), "the share of pictures, a tie being half"
    assert ours.low + theirs.high == pytest.approx(1)
    assert ours.low < ours.value < ours.high


@pytest.mark.parametrize(("winner", "share"), [(1.0, 1.0), (0.0, 0.5), (-1.0, 0.0)])
def test_captions_that_all_say_the_same_are_no_certainty(winner: float, share: float) -> None:
    captions = [str(number % 12) for number in range(36)]
    found = win_rate_by_caption(torch.full((36,), winner), torch.zeros(36), captions, seed=0)
    assert found == wilson(share, 12), "a vote for each caption, not for each picture"
    assert found.high - found.low > 0.2
