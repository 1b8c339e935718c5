import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rglcd.evaluation.statistics import bootstrap_mean, diversity, high_frequency_energy, saturation, win_rate


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5
    found = bootstrap_mean(values, seed=0, num_resamples=4000)
    half = 1.96 * values.std().item() / 20
    assert found.value == pytest.approx(values.mean().item())
    assert (found.high - found.value, found.value - found.low) == pytest.approx((half, half), rel=0.1)


def test_bootstrap_interval_depends_only_on_values_and_seed():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_bootstrap_interval_of_constant_values_has_no_width():
    found = bootstrap_mean(torch.full((9,), 0.25), seed=0)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


@given(st.integers(0, 60), st.integers(0, 60))
def test_win_rate_has_wilsons_interval(wins, losses):
    if wins + losses == 0:
        return
    ours, theirs = torch.tensor([1.0] * wins + [0.0] * losses), torch.tensor([0.0] * wins + [1.0] * losses)
    expected = stats.binomtest(wins, wins + losses).proportion_ci(0.95, method="wilson")
    found = win_rate(ours, theirs)
    assert found.value == pytest.approx(wins / (wins + losses))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_tie_is_half_a_win():
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0))
    assert win_rate(scores, scores).value == 0.5
    assert win_rate(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 1.0, 3.0, 5.0])).value == 0.5
    assert win_rate(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])).value == 0.75


@given(st.integers(0, 1000))
def test_win_rates_of_both_sides_add_up_to_one(seed):
    ours, theirs = torch.randint(0, 4, (2, 30), generator=torch.Generator().manual_seed(seed)).float()
    there, back = win_rate(ours, theirs), win_rate(theirs, ours)
    assert there.value + back.value == pytest.approx(1)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))


def test_high_frequency_energy_is_zero_if_flat_and_greatest_for_a_checkerboard():
    flat = torch.full((1, 3, 8, 8), 0.3)
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 3, 8, 8)
    ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)
    flat_energy, ramp_energy, board_energy = high_frequency_energy(torch.cat([flat, ramp, board])).tolist()
    assert flat_energy == pytest.approx(0, abs=1e-6)
    # A binomial blur turns a checkerboard into its mean, wherever the border is reflected.
    assert board_energy == pytest.approx(0.5)
    assert 0 < ramp_energy < 0.1


def test_saturation_is_zero_for_grey_and_one_for_pure_red():
    grey, red = torch.full((1, 3, 4, 4), 0.7), torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    assert saturation(torch.cat([grey, red])).tolist() == pytest.approx([0, 1])


def test_diversity_is_the_mean_distance_between_images_of_one_caption() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0], [100.0, 0.0], [-7.0, 0.0]])
    assert diversity(features, ["a", "a", "b", "b", "c"]) == pytest.approx(2.5)


def test_diversity_is_none_without_two_images_of_one_caption() -> None:
    assert diversity(torch.eye(3), ["a", "b", "c"]) is None
