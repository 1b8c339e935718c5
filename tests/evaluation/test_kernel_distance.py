"""KID's and CMMD's estimator: the plain formula, no bias, and intervals that cover."""

import math

import pytest
import torch

from rglcd.evaluation.kernel_distance import NUM_BLOCKS, KernelSample, blocks_of, cubic, gaussian, kernel_distance, kernel_sample


def drawn(seed: int, count: int, *, shift: float = 0.0, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def found(ours: torch.Tensor, theirs: torch.Tensor, kernel=cubic):
    names = [[f"caption {number}" for number in range(len(rows))] for rows in (ours, theirs)]
    estimate = kernel_distance(ours, theirs, kernel=kernel, our_blocks=blocks_of(names[0]), their_blocks=blocks_of(names[1]))
    assert estimate is not None
    return estimate


@pytest.mark.parametrize("kernel", [cubic, gaussian])
def test_the_distance_is_the_mean_over_pairs_of_different_images(kernel) -> None:
    """Gretton et al., JMLR 13 (2012), equation 3; more rows than are taken at once."""
    ours, theirs = drawn(0, 1100), drawn(1, 37, shift=0.3)
    within = [(kernel(rows, rows).sum() - kernel(rows, rows).diagonal().sum()) / (len(rows) * (len(rows) - 1)) for rows in (ours, theirs)]
    expected = within[0] + within[1] - 2 * kernel(ours, theirs).mean()
    assert found(ours, theirs, kernel).value == pytest.approx(float(expected), rel=1e-9)


def test_cmmds_kernel_is_the_published_one_with_its_scale() -> None:
    """google-research/cmmd/distance.py: sigma 10, scale 1000."""
    x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    assert float(gaussian(x, y)) == pytest.approx(1000 * math.exp(-25 / 200))


def test_two_samples_of_one_distribution_are_zero_apart_on_average() -> None:
    values = torch.tensor([found(drawn(2 * seed, 30), drawn(2 * seed + 1, 30)).value for seed in range(100)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(len(values))
    assert 0.3 < float((values < 0).double().mean()) < 0.8


def test_nineteen_of_twenty_intervals_hold_the_true_distance() -> None:
    """The truth is taken from two large samples; the jackknife may be somewhat wide or narrow."""
    truth = found(drawn(10_001, 3000, shift=0.5), drawn(10_002, 3000)).value
    intervals = [found(drawn(2 * seed, 60, shift=0.5), drawn(2 * seed + 1, 60)) for seed in range(100)]
    covered = sum(interval.low <= truth <= interval.high for interval in intervals) / len(intervals)
    assert 0.9 <= covered <= 1.0
    assert sum(interval.high - interval.low for interval in intervals) / len(intervals) < 3 * truth


def test_images_of_one_caption_are_left_out_together() -> None:
    assert blocks_of(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 2, 1]
    assert int(blocks_of([str(number) for number in range(50)]).max()) == NUM_BLOCKS - 1


def test_one_caption_alone_has_no_interval_and_so_no_distance() -> None:
    blocks = torch.zeros(8, dtype=torch.long)
    assert kernel_distance(drawn(0, 8), drawn(1, 8), kernel=cubic, our_blocks=blocks, their_blocks=blocks) is None


def test_what_was_measured_is_counted_as_it_was_drawn() -> None:
    """No more than 5,000 images of each set, and as many blocks as there are captions, up to twenty."""
    assert kernel_sample([str(number) for number in range(6000)], ["one"] * 30) == KernelSample(5000, 30, 20)
    assert kernel_sample(["a", "b", "a", "c"], ["d", "e"]) == KernelSample(4, 2, 3)
