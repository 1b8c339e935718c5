"""Converted outputs satisfy z_t = alpha x0 + sigma eps, and eps-, v- and x0-prediction agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule

DIFFUSION = NoiseSchedule.scaled_linear(beta_start=0.00085, beta_end=0.012, num_timesteps=1000)
SCHEDULES = dict.fromkeys(PredictionType, DIFFUSION) | {PredictionType.FLOW: NoiseSchedule.rectified_flow(shift=3.0)}


def output_of(truth: Prediction, t: torch.Tensor, kind: PredictionType) -> torch.Tensor:
    """What a perfect network of this kind would say."""
    alpha, sigma = SCHEDULES[kind].at(t, truth.x0)
    return {
        PredictionType.EPSILON: truth.eps,
        PredictionType.SAMPLE: truth.x0,
        PredictionType.V: alpha * truth.eps - sigma * truth.x0,
        PredictionType.FLOW: truth.eps - truth.x0,
    }[kind]


@pytest.mark.parametrize("kind", list(PredictionType))
@settings(max_examples=15, deadline=None)
@given(t=st.integers(0, 999), seed=st.integers(0, 2**16))
def test_converting_a_perfect_network_output_gives_back_x0_and_eps(kind: PredictionType, t: int, seed: int) -> None:
    x0, eps = torch.randn(2, 1, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steps = torch.tensor([t])
    schedule = SCHEDULES[kind]
    output, z_t = output_of(Prediction(x0, eps), steps, kind), schedule.diffuse(x0, eps, steps)
    prediction = convert(output, z_t, steps, schedule=schedule, kind=kind)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(prediction.eps, eps, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", list(PredictionType))
def test_converted_x0_and_eps_satisfy_z_t_for_any_output(kind: PredictionType, rng: torch.Generator) -> None:
    output, z_t = torch.randn(2, 4, 2, 3, 3, generator=rng, dtype=torch.float64)
    t = torch.tensor([0, 19, 500, 999])
    prediction = convert(output, z_t, t, schedule=SCHEDULES[kind], kind=kind)
    torch.testing.assert_close(SCHEDULES[kind].diffuse(prediction.x0, prediction.eps, t), z_t, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", list(PredictionType))
def test_half_precision_output_is_converted_in_the_precision_of_z_t(kind: PredictionType, rng: torch.Generator) -> None:
    output, z_t = torch.randn(2, 1, 2, 3, 3, generator=rng)
    prediction = convert(output.bfloat16(), z_t, torch.tensor([500]), schedule=SCHEDULES[kind], kind=kind)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32


def test_prediction_types_have_diffusers_names() -> None:
    assert {PredictionType(name) for name in ("epsilon", "v_prediction", "sample", "flow_prediction")} == set(PredictionType)
