"""The Fréchet distance between two sets of images: that of Gaussians fitted to their features (Heusel et al., arXiv 1706.08500).

With Inception-v3's pooled features it is called FID; with any others it is not, and its numbers are not comparable.

Shapes: features (B, D)    total (D,)    outer (D, D), everything kept in float64
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureMoments:
    """Running sums over any number of features: ``count``, their sum and the sum of their outer products.

    Sums of disjoint sets add up (``+``), so batches and ranks may be taken in any order.
    """

    count: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The sums over the rows of ``features`` (B, D)."""
        rows = features.detach().to("cpu", torch.float64)
        return cls(count=len(rows), total=rows.sum(dim=0), outer=rows.T @ rows)

    def __add__(self, other: "FeatureMoments") -> "FeatureMoments":
        return FeatureMoments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased. Raises ValueError for fewer than two features: one point has no spread."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two images, not {self.count}")
        return (self.outer - torch.outer(self.total, self.mean)) / (self.count - 1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B; zero for equal moments.

    The trace of (A B)^(1/2) is taken from the eigenvalues of the symmetric A^(1/2) B A^(1/2), which has the same ones:
    a third of the time of a general matrix root, and never complex.
    """
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    # Fewer images than features leave zero eigenvalues, which rounding makes slightly negative.
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root_a @ cov_b @ root_a
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(float(distance), 0.0)
