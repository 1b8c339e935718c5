"""The noise schedule: variance preserving, equal to diffusers', in the dtype of its input."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from rglcd.core.schedule import NoiseSchedule


def test_noise_schedule_preserves_variance_and_noise_increases(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(schedule.alphas**2 + schedule.sigmas**2, torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (schedule.ve_sigma().diff() > 0).all()
    assert schedule.num_timesteps == 1000


def test_scaled_linear_schedule_has_stable_diffusions_noise_levels(schedule: NoiseSchedule) -> None:
    # sigma / alpha of the published schedule (0.00085 .. 0.012, scaled linear): 0.0292 at t = 0 and 14.61 at t = 999.
    assert schedule.ve_sigma()[0].item() == pytest.approx(0.0292, abs=5e-5)
    assert schedule.ve_sigma()[999].item() == pytest.approx(14.61, abs=5e-3)


def test_noise_schedule_equals_diffusers(schedule: NoiseSchedule, rng: torch.Generator) -> None:
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    z0, eps = torch.randn(2, 4, 3, 5, 5, generator=rng)
    t = torch.tensor([0, 19, 500, 999])
    ours = NoiseSchedule.from_alphas_cumprod(theirs.alphas_cumprod)
    torch.testing.assert_close(ours.diffuse(z0, eps, t), theirs.add_noise(z0, eps, t), rtol=0, atol=0)
    # Their float32 product of 1,000 factors against ours in float64.
    torch.testing.assert_close(schedule.alphas, theirs.alphas_cumprod.sqrt().double(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_diffused_latents_have_the_dtype_of_the_input(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    z0 = torch.ones(2, 1, 2, 2, dtype=dtype)
    alpha, sigma = schedule.at(torch.tensor([0, 999]), z0)
    assert alpha.dtype == sigma.dtype == schedule.diffuse(z0, z0, torch.tensor([0, 999])).dtype == dtype
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    assert schedule.to(dtype=dtype).ve_sigma().dtype == dtype


@pytest.mark.parametrize("abar", [[0.9, 0.9, 0.5], [1.0, 0.5], [0.5, 0.0, 0.0], [0.5, -0.1], [0.5, 0.9], [[0.9, 0.5]]])
def test_noise_schedule_refuses_alphas_that_do_not_decrease_inside_zero_and_one(abar: list[float]) -> None:
    with pytest.raises(ValueError, match="decrease strictly"):
        NoiseSchedule.from_alphas_cumprod(torch.tensor(abar))


def test_a_flow_goes_straight_from_the_data_to_noise_alone() -> None:
    flow = NoiseSchedule.rectified_flow(shift=3.0)
    assert (flow.alphas[0].item(), flow.sigmas[0].item()) == (1, 0)
    assert (flow.alphas[-1].item(), flow.sigmas[-1].item()) == (0, 1)
    torch.testing.assert_close(flow.alphas + flow.sigmas, torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (flow.sigmas.diff() > 0).all()
    assert flow.to(dtype=torch.float32).is_flow


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_a_flows_noise_levels_are_diffusers(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = NoiseSchedule.rectified_flow(shift=shift)
    torch.testing.assert_close(ours.sigmas[1:].float(), theirs.sigmas.flip(0)[1:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_flow_refuses_a_shift_that_is_not_positive(shift: float) -> None:
    with pytest.raises(ValueError, match="shift is positive"):
        NoiseSchedule.rectified_flow(shift=shift)


@pytest.mark.parametrize("num_timesteps", [1, 0, -5])
def test_a_flow_refuses_fewer_than_two_timesteps(num_timesteps: int) -> None:
    with pytest.raises(ValueError, match="two timesteps at least"):
        NoiseSchedule.rectified_flow(num_timesteps=num_timesteps)


def test_trigflow_preserves_variance_from_the_data_to_noise_alone() -> None:
    trigflow = NoiseSchedule.trigflow()
    torch.testing.assert_close(trigflow.alphas**2 + trigflow.sigmas**2, torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-15)
    assert trigflow.sigmas[0].item() == 0
    assert trigflow.alphas[-1].item() == pytest.approx(0, abs=1e-16)


def test_the_gaps_of_noise_are_finite_up_to_a_flows_noise_alone(schedule: NoiseSchedule) -> None:
    flow = NoiseSchedule.rectified_flow(shift=3.0)
    assert flow.ve_sigma()[-1].isinf()
    assert (flow.gap_sigma().diff() > 0).all()
    assert torch.equal(schedule.gap_sigma(), schedule.ve_sigma())
