"""Multistep consistency sampling, in one to eight steps.

Shapes: noises, z_t, z0 (B,C,H,W)    t (B,)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rglcd.core.schedule import NoiseSchedule


def lcm_timesteps(num_steps: int, *, original_steps: int = 50, num_timesteps: int = 1000) -> tuple[int, ...]:
    """The falling timesteps of a `num_steps` draw, evenly spread over the training grid; diffusers' LCMScheduler's.

    Raises ValueError unless 1 <= num_steps <= original_steps <= num_timesteps.
    """
    if not 1 <= num_steps <= original_steps <= num_timesteps:
        raise ValueError(f"need 1 <= {num_steps=} <= {original_steps=} <= {num_timesteps=}")
    skip = num_timesteps // original_steps
    return tuple((original_steps - i * original_steps // num_steps) * skip - 1 for i in range(num_steps))


def multistep_sample(
    f: Callable[[Tensor, Tensor], Tensor],
    noises: Sequence[Tensor],
    timesteps: Sequence[int],
    *,
    schedule: NoiseSchedule,
) -> Tensor:
    """z0 after one call of the consistency function `f`(z_t, t) per timestep (falling): RG-LCD Algorithm 2.

    `noises` holds one (B,C,H,W) per timestep: the first is the initial sample, each later one re-noises the last z0.
    """
    assert len(noises) == len(timesteps), "one noise for each timestep"
    z0 = None
    for noise, timestep in zip(noises, timesteps, strict=True):
        t = torch.full((len(noise),), timestep, device=noise.device)
        z0 = f(noise if z0 is None else schedule.diffuse(z0, noise, t), t)
    assert z0 is not None, "at least one step"
    return z0
