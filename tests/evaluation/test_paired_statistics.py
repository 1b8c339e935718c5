"""Intervals over captions: right where pictures of one caption are alike, and the old ones where each caption has one picture."""

import pytest
import torch

from rglcd.evaluation.intervals import wilson
from rglcd.evaluation.paired_statistics import mean_by_caption, win_rate_by_caption
from rglcd.evaluation.statistics import bootstrap_mean, win_rate


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_with_one_picture_a_caption_it_is_the_bootstrap_over_pictures() -> None:
    values = noise(40)
    assert mean_by_caption(values, [str(number) for number in range(40)], seed=3) == bootstrap_mean(values, seed=3)


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
            ("pictures", bootstrap_mean(values, seed=seed, num_resamples=400)),
        ):
            covered[name] += found.low <= 0 <= found.high
    assert covered["captions"] >= 0.89 * 150
    assert covered["pictures"] < 0.65 * 150


def test_a_win_rate_and_the_other_sides_add_up_to_one() -> None:
    a, b, captions = noise(48), noise(48, seed=1).round(), [str(number % 16) for number in range(48)]
    ours, theirs = win_rate_by_caption(a.round(), b, captions, seed=0), win_rate_by_caption(b, a.round(), captions, seed=0)
    assert ours.value + theirs.value == pytest.approx(1)
    assert ours.value == pytest.approx(win_rate(a.round(), b).value), "the share of pictures, a tie being half"
    assert ours.low + theirs.high == pytest.approx(1)
    assert ours.low < ours.value < ours.high


@pytest.mark.parametrize(("winner", "share"), [(1.0, 1.0), (0.0, 0.5), (-1.0, 0.0)])
def test_captions_that_all_say_the_same_are_no_certainty(winner: float, share: float) -> None:
    captions = [str(number % 12) for number in range(36)]
    found = win_rate_by_caption(torch.full((36,), winner), torch.zeros(36), captions, seed=0)
    assert found == wilson(share, 12), "a vote for each caption, not for each picture"
    assert found.high - found.low > 0.2
