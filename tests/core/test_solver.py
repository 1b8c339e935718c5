"""The skipped grid, and one DDIM step equal to diffusers' scheduler."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from rglcd.core.prediction import PredictionType, convert
from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver

SCHEDULE = NoiseSchedule.scaled_linear(beta_start=0.00085, beta_end=0.012, num_timesteps=1000)


def test_ddim_grid_of_50_steps_is_the_released_codes() -> None:
    solver = DDIMSolver(SCHEDULE)
    pair = solver.pair(torch.arange(50))
    assert solver.timesteps.tolist() == list(range(19, 1000, 20))
    assert pair.t.tolist() == list(range(19, 1000, 20))
    assert pair.s.tolist() == [0, *range(19, 980, 20)]


@settings(max_examples=40, deadline=None)
@given(num_steps=st.integers(1, 999))
def test_ddim_grid_covers_all_timesteps_without_gaps(num_steps: int) -> None:
    pair = DDIMSolver(SCHEDULE, num_steps).pair(torch.arange(num_steps))
    assert pair.s[0] == 0
    assert pair.t[-1] == 999
    assert (pair.t[:-1] == pair.s[1:]).all()
    skips = pair.t - pair.s
    assert (skips > 0).all()
    # The first skip is one short, since the last training timestep is T - 1.
    assert skips[1:].numel() == 0 or skips[1:].max() - skips[1:].min() <= 1


@pytest.mark.parametrize("num_steps", [0, 1000])
def test_ddim_solver_refuses_zero_steps_or_more_steps_than_timesteps(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps must be in"):
        DDIMSolver(SCHEDULE, num_steps)


@pytest.mark.parametrize("kind", [PredictionType.EPSILON, PredictionType.V, PredictionType.SAMPLE])
@pytest.mark.parametrize("num_steps", [50, 10])
def test_ddim_step_equals_diffusers(kind: PredictionType, num_steps: int, rng: torch.Generator) -> None:
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        prediction_type=kind,
    )
    theirs.set_timesteps(num_steps)
    schedule = NoiseSchedule.from_alphas_cumprod(theirs.alphas_cumprod)
    solver = DDIMSolver(schedule, num_steps)
    assert theirs.timesteps.tolist() == solver.timesteps.tolist()[::-1]
    for index in range(num_steps):
        output, z_t = torch.randn(2, 1, 4, 4, 4, generator=rng)
        pair = solver.pair(torch.tensor([index]))
        z_s = solver.step(convert(output, z_t, pair.t, schedule=schedule, kind=kind), pair.s)
        expected = theirs.step(output, int(pair.t), z_t, eta=0.0).prev_sample
        # float32: x0 is divided by alpha, down to 0.068, before both round.
        torch.testing.assert_close(z_s, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("num_steps", [50, 10])
def test_ddim_step_on_a_flow_is_diffusers_euler_step(shift: float, num_steps: int, rng: torch.Generator) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    # Without sigmas of ours its linspace ends at 1/T, which is then shifted once more: huggingface/diffusers issue 13243.
    theirs.set_timesteps(sigmas=[1 - step / num_steps for step in range(num_steps)])
    schedule = NoiseSchedule.rectified_flow(shift=shift).to(dtype=torch.float32)
    solver = DDIMSolver(schedule, num_steps)
    torch.testing.assert_close(1000 * schedule.sigmas[solver.timesteps].flip(0), theirs.timesteps, rtol=1e-6, atol=1e-4)
    z = z_t = torch.randn(1, 4, 4, 4, generator=rng)
    for index, time in zip(reversed(range(num_steps)), theirs.timesteps, strict=True):
        output = (1.7 * z_t).sin()
        pair = solver.pair(torch.tensor([index]))
        z = solver.step(convert(output, z_t, pair.t, schedule=schedule, kind=PredictionType.FLOW), pair.s)
        z_t = theirs.step(output, time, z_t).prev_sample
        torch.testing.assert_close(z, z_t, rtol=1e-5, atol=1e-5)
