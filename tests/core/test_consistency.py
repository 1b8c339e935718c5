"""The consistency function meets its boundary condition for any network output."""

import pytest
import torch

from rglcd.core.consistency import BoundaryScalings, FlowBoundary, consistency_output
from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule


def test_consistency_function_at_time_zero_is_the_identity(rng: torch.Generator) -> None:
    z, x0 = torch.randn(2, 3, 2, 4, 4, generator=rng)
    out = consistency_output(Prediction(x0, x0), z, torch.zeros(3, dtype=torch.long), scalings=BoundaryScalings())
    torch.testing.assert_close(out, z, rtol=0, atol=0)


def test_consistency_function_on_the_training_grid_is_nearly_the_predicted_x0(rng: torch.Generator) -> None:
    z, x0 = torch.randn(2, 2, 2, 4, 4, generator=rng, dtype=torch.float64)
    out = consistency_output(Prediction(x0, x0), z, torch.tensor([19, 999]), scalings=BoundaryScalings())
    # c_skip(19) = 6.9e-6 and 1 - c_out(19) half of that, with LCM's constants.
    torch.testing.assert_close(out, x0, rtol=0, atol=5e-5)
    c_skip, _ = BoundaryScalings().at(torch.tensor([19]), z)
    assert c_skip.item() == pytest.approx(6.9e-6, rel=0.01)


def test_boundary_scalings_move_from_c_skip_to_c_out_as_t_grows(rng: torch.Generator) -> None:
    c_skip, c_out = BoundaryScalings(sigma_data=0.5, timestep_scaling=0.01).at(torch.arange(1000), torch.empty(0, 1, 1, 1))
    assert (c_skip.flatten().diff() < 0).all()
    assert (c_out.flatten().diff() > 0).all()
    torch.testing.assert_close(c_skip + c_out**2, torch.ones_like(c_skip))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boundary_scalings_do_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    # (10 t)^2 reaches 10^8; float16 ends at 65,504.
    c_skip, c_out = BoundaryScalings().at(torch.tensor([999]), torch.empty(0, 1, 1, 1, dtype=dtype))
    assert c_out.item() == 1
    assert 0 <= c_skip.item() < 1e-6
    assert c_out.dtype == dtype


def test_a_flows_consistency_function_at_time_zero_is_the_identity_for_any_network(rng: torch.Generator) -> None:
    z, velocity = torch.randn(2, 3, 2, 4, 4, generator=rng)
    t = torch.zeros(3, dtype=torch.long)
    prediction = convert(velocity, z, t, schedule=NoiseSchedule.rectified_flow(shift=3.0), kind=PredictionType.FLOW)
    torch.testing.assert_close(consistency_output(prediction, z, t, scalings=FlowBoundary()), z, rtol=0, atol=0)
