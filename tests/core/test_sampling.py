"""Our sampler is diffusers' LCMScheduler: same timesteps, same latents from the same noise."""

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, LCMScheduler, SCMScheduler
from torch import Tensor

from rglcd.core.consistency import BoundaryScalings, FlowBoundary, consistency_output
from rglcd.core.prediction import PredictionType, convert
from rglcd.core.sampling import lcm_timesteps, multistep_sample
from rglcd.core.schedule import NoiseSchedule


def network(z_t: Tensor, t: Tensor) -> Tensor:
    """A fixed non-linear stand-in for a trained network."""
    return (1.7 * z_t).sin() + 0.3 * z_t.flip(1) - t[:, None, None, None] / 1000


@pytest.mark.parametrize("original_steps", [50, 25, 40])
@pytest.mark.parametrize("num_steps", range(1, 9))
def test_lcm_timesteps_equal_diffusers(num_steps: int, original_steps: int) -> None:
    theirs = LCMScheduler(original_inference_steps=original_steps)
    theirs.set_timesteps(num_steps)
    assert list(lcm_timesteps(num_steps, original_steps=original_steps)) == theirs.timesteps.tolist()


def test_lcm_timesteps_of_few_steps_are_the_documented_ones() -> None:
    assert [lcm_timesteps(n) for n in (1, 2, 4)] == [(999,), (999, 499), (999, 759, 499, 259)]


@pytest.mark.parametrize("kind", [PredictionType.EPSILON, PredictionType.V, PredictionType.SAMPLE])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("timestep_scaling", [10.0, 0.001])
def test_multistep_sample_equals_diffusers_lcm_scheduler(kind: PredictionType, num_steps: int, timestep_scaling: float) -> None:
    # The second scaling makes c_skip matter (0.2 .. 0.94 on these timesteps), which LCM's own hides.
    theirs = LCMScheduler(prediction_type=kind, timestep_scaling=timestep_scaling)
    theirs.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(5)
    noises = [torch.randn(2, 4, 3, 3, generator=generator) for _ in range(num_steps)]
    schedule = NoiseSchedule.from_alphas_cumprod(theirs.alphas_cumprod)
    scalings = BoundaryScalings(timestep_scaling=timestep_scaling)

    def f(z_t: Tensor, t: Tensor) -> Tensor:
        return consistency_output(convert(network(z_t, t), z_t, t, schedule=schedule, kind=kind), z_t, t, scalings=scalings)

    ours = multistep_sample(f, noises, lcm_timesteps(num_steps), schedule=schedule)
    # Their loop draws its own noise: the same stream, from where the first draw leaves it.
    stream = torch.Generator().manual_seed(5)
    z = torch.randn(2, 4, 3, 3, generator=stream)
    for t in theirs.timesteps:
        z = theirs.step(network(z, t.expand(2)), int(t), z, generator=stream).prev_sample
    # float32 over up to eight steps, the first dividing by alpha = 0.068.
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_multistep_sample_of_a_flow_equals_diffusers_flow_match_lcm_scheduler(num_steps: int) -> None:
    timesteps = lcm_timesteps(num_steps)
    theirs = FlowMatchLCMScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=[(t + 1) / 1000 for t in timesteps])
    schedule = NoiseSchedule.rectified_flow(shift=3.0).to(dtype=torch.float32)

    def f(z_t: Tensor, t: Tensor) -> Tensor:
        velocity = network(z_t, 1000 * schedule.sigmas[t])
        return consistency_output(convert(velocity, z_t, t, schedule=schedule, kind=PredictionType.FLOW), z_t, t, scalings=FlowBoundary())

    stream = torch.Generator().manual_seed(5)
    ours = multistep_sample(f, [torch.randn(2, 4, 3, 3, generator=stream) for _ in range(num_steps)], timesteps, schedule=schedule)
    stream.manual_seed(5)
    z = torch.randn(2, 4, 3, 3, generator=stream)
    for t in theirs.timesteps:
        z = theirs.step(network(z, t.expand(2)), t, z, generator=stream).prev_sample
    torch.testing.assert_close(ours, z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_multistep_sample_on_trigflow_is_diffusers_scm_scheduler(num_steps: int) -> None:
    # SANA-Sprint's: its network is a v-prediction of alpha = cos t, sigma = sin t, for latents of unit deviation.
    schedule = NoiseSchedule.trigflow().to(dtype=torch.float32)
    timesteps = lcm_timesteps(num_steps)
    angles = [float(schedule.sigmas.double()[t].clamp(max=1).asin()) for t in timesteps]
    theirs = SCMScheduler(sigma_data=1.0)
    theirs.set_timesteps(num_steps, timesteps=[*angles, 0.0], max_timesteps=None, intermediate_timesteps=None)

    def f(z_t: Tensor, t: Tensor) -> Tensor:
        output = network(z_t, 100 * t)
        return consistency_output(convert(output, z_t, t, schedule=schedule, kind=PredictionType.V), z_t, t, scalings=FlowBoundary())

    stream = torch.Generator().manual_seed(5)
    ours = multistep_sample(f, [torch.randn(2, 4, 3, 3, generator=stream) for _ in range(num_steps)], timesteps, schedule=schedule)
    stream.manual_seed(5)
    z = torch.randn(2, 4, 3, 3, generator=stream)
    for t, angle in zip(timesteps, theirs.timesteps, strict=False):
        z, denoised = theirs.step(network(z, torch.full((2,), 100 * t)), angle, z, generator=stream, return_dict=False)
    torch.testing.assert_close(ours, denoised, rtol=1e-4, atol=1e-4)


def test_multistep_sample_calls_the_model_once_per_timestep_for_the_whole_batch(schedule: NoiseSchedule) -> None:
    seen: list[list[int]] = []

    def f(z_t: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return torch.zeros_like(z_t)

    noises = [torch.full((2, 1, 1, 1), float(i), dtype=torch.float64) for i in (1, 2)]
    multistep_sample(f, noises, (999, 499), schedule=schedule)
    assert seen == [[999, 999], [499, 499]]


@pytest.mark.parametrize("num_steps", [0, 51])
def test_lcm_timesteps_refuse_more_steps_than_the_grid_has(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        lcm_timesteps(num_steps)
