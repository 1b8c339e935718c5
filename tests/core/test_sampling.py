"""Our sampler is diffusers' LCMScheduler: same timesteps, same latents from the same noise."""

import pytest
import torch
from diffusers import LCMScheduler
from torch import Tensor

from rglcd.core.consistency import BoundaryScalings, consistency_output
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


@pytest.mark.parametrize("kind", list(PredictionType))
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
