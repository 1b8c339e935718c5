"""Distances: zero where equal, symmetric, per sample, with the limits their names promise."""

import math

import pytest
import torch

from rglcd.core.distances import Distance, cauchy, huber, pseudo_huber, squared_l2

ALL = [squared_l2, huber, pseudo_huber, cauchy]
# d = 64 elements.
SHAPE = (3, 4, 4, 4)


@pytest.mark.parametrize("distance", ALL)
def test_distances_are_positive_symmetric_and_zero_only_for_equal_inputs(distance: Distance, rng: torch.Generator) -> None:
    x, y = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)
    assert distance(x, y).shape == (3,)
    assert (distance(x, y) > 0).all()
    torch.testing.assert_close(distance(x, y), distance(y, x), rtol=0, atol=0)
    assert (distance(x, x) == 0).all()


@pytest.mark.parametrize("distance", ALL)
def test_distance_of_a_sample_does_not_depend_on_the_batch(distance: Distance, rng: torch.Generator) -> None:
    x, y = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(distance(x, y)[1:2], distance(x[1:2], y[1:2]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("distance", ALL)
def test_distance_gradients_are_correct_and_finite_for_equal_inputs(distance: Distance, rng: torch.Generator) -> None:
    x, y = 1e-2 * torch.randn(2, 2, 1, 3, 3, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: distance(x, y), x.requires_grad_())
    (gradient,) = torch.autograd.grad(distance(x, x.detach()).sum(), x)
    assert (gradient == 0).all()


def test_distances_equal_the_papers_formulas(rng: torch.Generator) -> None:
    x, y = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)
    difference = x - y
    norm_squared = difference.square().sum(dim=(1, 2, 3))
    c = 0.00054 * math.sqrt(64)
    torch.testing.assert_close(squared_l2(x, y), norm_squared / 64)
    torch.testing.assert_close(huber(x, y), ((difference.square() + 1e-6).sqrt() - 1e-3).mean(dim=(1, 2, 3)))
    torch.testing.assert_close(pseudo_huber(x, y), (norm_squared + c**2).sqrt() - c)
    torch.testing.assert_close(cauchy(x, y, c=0.5), torch.log(1 + norm_squared / 0.5))


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away() -> None:
    x, direction = torch.zeros(1, 1, 8, 8, dtype=torch.float64), torch.ones(1, 1, 8, 8, dtype=torch.float64) / 8
    assert pseudo_huber(x, 1e-6 * direction, c=1.0).item() == pytest.approx(0.5e-12, rel=1e-9)
    assert pseudo_huber(x, 1e6 * direction, c=1.0).item() == pytest.approx(1e6 - 1, rel=1e-9)


def test_default_pseudo_huber_constant_is_icts_for_cifar10_and_imagenet64() -> None:
    # sqrt(c^2 + c^2) - c = (sqrt(2) - 1) c at a difference of norm c: iCT gives c = 0.03 and 0.06 for these sizes.
    for size, published in ((32, 0.03), (64, 0.06)):
        x = torch.zeros(1, 3, size, size, dtype=torch.float64)
        y = torch.full_like(x, published / math.sqrt(x.numel()))
        assert pseudo_huber(x, y).item() == pytest.approx((math.sqrt(2) - 1) * published, rel=0.01)


def test_huber_of_small_residuals_is_accurate_in_float32() -> None:
    # sqrt(q + c^2) - c as written is 0 here: c^2 swallows q.
    x = torch.zeros(1, 1, 2, 2)
    assert huber(x, x + 1e-7, c=1e-3).item() == pytest.approx(5e-12, rel=1e-3)
