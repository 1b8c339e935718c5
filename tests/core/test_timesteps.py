"""Timestep sampling: frequencies follow the weights, weights follow iCT, the curriculum only grows."""

import math
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver
from rglcd.core.timesteps import (
    doubling_curriculum,
    even_weights,
    inverse_gap_weights,
    lognormal_weights,
    mixture,
    uniform_weights,
    weighted_index,
)

# The midpoints of 100,000 equal cells: frequencies without the noise of drawing.
EVEN = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


def frequencies(index: torch.Tensor, num_steps: int) -> torch.Tensor:
    return torch.bincount(index, minlength=num_steps) / len(index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [1, 3, 7, 50, 640, 999])
def test_weighted_index_stays_on_the_grid_for_the_smallest_and_largest_u(dtype: torch.dtype, num_steps: int) -> None:
    ends = torch.stack([torch.zeros((), dtype=dtype), torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))])
    assert weighted_index(ends, torch.ones(num_steps, dtype=dtype)).tolist() == [0, num_steps - 1]


def levels_of(num_steps: int) -> torch.Tensor:
    return torch.logspace(-2, 1, num_steps + 1, dtype=torch.float64)


def test_uniform_weights_draw_all_grid_steps_equally_often() -> None:
    weights = uniform_weights(levels_of(50))
    torch.testing.assert_close(frequencies(weighted_index(EVEN, weights), 50), torch.full((50,), 0.02), rtol=0, atol=1e-4)
    assert torch.equal(weighted_index(EVEN, torch.full((50,), 3.0)), (EVEN * 50).long())


@settings(max_examples=40, deadline=None)
@given(num_steps=st.integers(1, 100), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda ends: ends[0] < ends[1]))
def test_uniform_weights_of_a_span_are_even_inside_and_zero_outside(num_steps: int, ends: tuple[float, float]) -> None:
    weights = uniform_weights(levels_of(num_steps), span=ends)
    inside = weights.nonzero().flatten()
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert len(set(weights[inside].tolist())) == 1
    assert inside.tolist() == list(range(int(inside[0]), int(inside[-1]) + 1))
    # Half a step of rounding; one more at an end where a span of less than a step is made whole.
    assert abs(int(inside[0]) - ends[0] * num_steps) <= 1.5
    assert abs(int(inside[-1]) + 1 - ends[1] * num_steps) <= 1.5


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.one_of(st.just(0.0), st.floats(0.01, 10)), min_size=1, max_size=20).filter(any))
def test_weighted_index_follows_the_weights_and_never_draws_zero_weight(weights: list[float]) -> None:
    expected = torch.tensor(weights, dtype=torch.float64)
    drawn = frequencies(weighted_index(EVEN, expected), len(weights)).double()
    torch.testing.assert_close(drawn, expected / expected.sum(), rtol=0, atol=2e-5)
    assert (drawn[expected == 0] == 0).all()


def test_weighted_index_at_a_boundary_of_two_steps_is_the_upper_step() -> None:
    assert weighted_index(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 1.0, 0.0, 1.0])).tolist() == [1, 3]


def test_lognormal_weights_are_the_probabilities_of_a_normal_log_sigma(rng: torch.Generator) -> None:
    levels = torch.logspace(-3, 3, 31, dtype=torch.float64)
    weights = lognormal_weights(levels, p_mean=-0.5, p_std=1.5)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    log_sigma = -0.5 + 1.5 * torch.randn(400_000, generator=rng, dtype=torch.float64)
    inside = log_sigma[(log_sigma > levels[0].log()) & (log_sigma < levels[-1].log())]
    drawn = frequencies(torch.searchsorted(levels.log(), inside) - 1, 30).double()
    # Four standard errors at the likeliest cell.
    torch.testing.assert_close(drawn, weights, rtol=0, atol=4 * math.sqrt(0.13 / 400_000))


def test_icts_lognormal_constants_favour_low_noise_on_stable_diffusions_grid(schedule: NoiseSchedule) -> None:
    weights = lognormal_weights(schedule.ve_sigma()[DDIMSolver(schedule).boundaries])
    assert weights.shape == (50,)
    # The published constants evaluated on this grid: a quarter of the draws in the last step before the image.
    assert weights[0].item() == pytest.approx(0.248, abs=5e-4)
    assert weights[-1].item() < 0.02
    mixed = mixture(weights, uniform_share=0.5)
    assert mixed.sum().item() == pytest.approx(1, abs=1e-12)
    assert mixed.min().item() > 0.01
    torch.testing.assert_close(mixture(weights, uniform_share=0.0), weights)


def test_inverse_gap_weights_are_one_over_the_gap_with_mean_one(schedule: NoiseSchedule) -> None:
    levels = schedule.ve_sigma()[DDIMSolver(schedule).boundaries]
    for probabilities in (uniform_weights(levels), lognormal_weights(levels)):
        weights = inverse_gap_weights(levels, probabilities)
        assert (probabilities * weights).sum().item() == pytest.approx(1, abs=1e-12)
        product = weights * levels.diff()
        torch.testing.assert_close(product, product[:1].expand_as(product))
        assert torch.equal(even_weights(levels, probabilities), torch.ones(50, dtype=torch.float64))
    # On Stable Diffusion's grid the cleanest of 50 steps counts 37 times the noisiest.
    assert (weights.max() / weights.min()).item() == pytest.approx(36.8, abs=0.1)


def test_doubling_curriculum_equals_icts_formula() -> None:
    # 400,000 steps, s0 = 10, s1 = 1280: eight stages of 50,000.
    for step in range(0, 400_000, 12_500):
        assert doubling_curriculum(step, total_steps=400_000, s0=10, s1=1280) == min(10 * 2 ** (step // 50_000), 1280)


@settings(max_examples=40, deadline=None)
@given(total_steps=st.integers(1, 500), s0=st.integers(1, 40), factor=st.floats(1, 40))
def test_doubling_curriculum_rises_in_stages_of_equal_length(total_steps: int, s0: int, factor: float) -> None:
    s1 = int(s0 * factor)
    levels = [doubling_curriculum(step, total_steps=total_steps, s0=s0, s1=s1) for step in range(total_steps)]
    stages = [(level, len(list(steps))) for level, steps in groupby(levels)]
    assert levels == sorted(levels)
    assert set(levels) <= {min(s0 * 2**i, s1) for i in range(8)}
    if total_steps >= 8:
        assert (levels[0], levels[-1]) == (s0, s1)
        lengths = [length for _, length in stages]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"step": 10, "total_steps": 10, "s0": 1, "s1": 2},
        {"step": -1, "total_steps": 10, "s0": 1, "s1": 2},
        {"step": 0, "total_steps": 10, "s0": 3, "s1": 2},
    ],
)
def test_doubling_curriculum_refuses_steps_and_grids_out_of_range(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="total_steps"):
        doubling_curriculum(arguments["step"], total_steps=arguments["total_steps"], s0=arguments["s0"], s1=arguments["s1"])
