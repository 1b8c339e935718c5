import math

import pytest
import torch

from rglcd.toy.training import LOG_EVERY, Curve, cosine, descend


def rate(step: int, *, total: int = 1000) -> float:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine(optimizer, 2.0, step=step, total=total, warmup=10, floor=0.1)
    return float(optimizer.param_groups[0]["lr"])


def test_learning_rate_warms_up_linearly_and_decays_to_its_floor() -> None:
    assert rate(0) == pytest.approx(0.2, rel=1e-3)
    assert rate(500) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5), rel=1e-6)
    assert rate(1000) == pytest.approx(0.2)
    assert max(rate(step) for step in range(0, 1000, 7)) <= 2.0


def test_descend_clips_the_gradient_to_norm_one() -> None:
    weight = torch.zeros(2, requires_grad=True)
    descend((weight * torch.tensor([30.0, 40.0])).sum(), torch.optim.SGD([weight], lr=1.0))
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    assert math.isclose(float(weight.detach().norm()), 1.0, rel_tol=1e-4)


def test_curve_points_are_means_over_the_logging_interval() -> None:
    curve = Curve("part")
    for step in range(2 * LOG_EVERY):
        curve.add("act", step, total=2 * LOG_EVERY, loss=torch.tensor(float(step)))
    assert [(point["step"], point["loss"]) for point in curve.points] == [
        (LOG_EVERY, (LOG_EVERY - 1) / 2),
        (2 * LOG_EVERY, (3 * LOG_EVERY - 1) / 2),
    ]
