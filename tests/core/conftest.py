"""Fixtures of the core's tests: a seeded generator, and Stable Diffusion's schedule in float64."""

import pytest
import torch

from rglcd.core.schedule import NoiseSchedule


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(20240318)


@pytest.fixture(scope="session")
def schedule() -> NoiseSchedule:
    return NoiseSchedule.scaled_linear(beta_start=0.00085, beta_end=0.012, num_timesteps=1000)
