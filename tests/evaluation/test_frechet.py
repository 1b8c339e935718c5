import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rglcd.evaluation.frechet import FeatureMoments, frechet_distance


def features(seed: int, count: int = 200, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + torch.randn(width, generator=generator)


def exact_moments(mean: torch.Tensor, covariance: torch.Tensor, count: int = 1000) -> FeatureMoments:
    """Sums whose mean and unbiased covariance are exactly these."""
    return FeatureMoments(count, count * mean, (count - 1) * covariance + count * torch.outer(mean, mean))


def test_distance_of_equal_sets_is_zero_even_with_fewer_images_than_features():
    for count in (3, 200):
        moments = FeatureMoments.of(features(0, count=count))
        assert frechet_distance(moments, moments) == pytest.approx(0, abs=1e-6)


def test_distance_of_commuting_gaussians_is_the_closed_form():
    generator = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    a, b = torch.rand(2, 5, generator=generator, dtype=torch.float64) + 0.1
    mean_a, mean_b = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    distance = frechet_distance(exact_moments(mean_a, axes @ a.diag() @ axes.T), exact_moments(mean_b, axes @ b.diag() @ axes.T))
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert distance == pytest.approx(expected.item(), rel=1e-10)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_distance_equals_the_formula_with_a_general_matrix_square_root(seed):
    a, b = FeatureMoments.of(features(seed)), FeatureMoments.of(features(seed + 1))
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    gap = np.square((a.mean - b.mean).numpy()).sum()
    expected = gap + np.trace(a.covariance.numpy() + b.covariance.numpy() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


@given(st.permutations(range(200)), st.integers(1, 199))
@settings(max_examples=20, deadline=None)
def test_moments_do_not_depend_on_order_or_batches(order, cut):
    rows, other = features(3), FeatureMoments.of(features(4))
    shuffled = rows[list(order)]
    merged = FeatureMoments.of(shuffled[:cut]) + FeatureMoments.of(shuffled[cut:])
    assert merged.count == 200
    assert torch.allclose(merged.covariance, torch.cov(rows.T), rtol=1e-10)
    assert frechet_distance(merged, other) == pytest.approx(frechet_distance(FeatureMoments.of(rows), other), rel=1e-9)


def test_distance_of_a_single_image_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(FeatureMoments.of(features(0, count=1)), FeatureMoments.of(features(0)))
