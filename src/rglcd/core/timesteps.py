"""Sampling of training timesteps on the solver's grid, and their loss weights. Random numbers are arguments: u uniform in [0, 1).

Shapes: u, index (B,)    weights, probabilities (N,)    ve_sigma (N+1,) rising noise levels at the ends of the N grid steps
"""

import math

import torch
from torch import Tensor


def uniform_weights(ve_sigma: Tensor, *, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Probabilities (N,): all grid steps equally likely (LCM's choice), or only those in a `span` of the grid.

    The span runs from 0, the cleanest end, to 1, the noisiest; its ends are rounded to whole steps and it holds one at least.
    """
    num_steps = len(ve_sigma) - 1
    first = min(round(span[0] * num_steps), num_steps - 1)
    last = max(round(span[1] * num_steps), first + 1)
    weights = torch.zeros_like(ve_sigma[1:])
    weights[first:last] = 1.0
    return weights / (last - first)


def lognormal_weights(ve_sigma: Tensor, *, p_mean: float = -1.1, p_std: float = 2.0) -> Tensor:
    """Probabilities (N,) of the grid steps between the rising noise levels `ve_sigma` (N+1,): log sigma is normal.

    The defaults are iCT's, for data of standard deviation 0.5; for unit variance add log 2 to `p_mean`.
    """
    standardised = (ve_sigma.log() - p_mean) / (math.sqrt(2.0) * p_std)
    # p(sigma_i) ~ erf((ln sigma_{i+1} - Pm) / (sqrt2 Ps)) - erf((ln sigma_i - Pm) / (sqrt2 Ps)): iCT Eq. 10
    mass = torch.erf(standardised).diff()
    return mass / mass.sum()


def mixture(weights: Tensor, *, uniform_share: float) -> Tensor:
    """Probabilities (N,): `weights`, with `uniform_share` in [0, 1] of all draws spread evenly over the grid.

    A few-step sampler starts at the noisiest levels, which lognormal weights alone would rarely train.
    """
    return (1 - uniform_share) * weights / weights.sum() + uniform_share / len(weights)


def even_weights(ve_sigma: Tensor, probabilities: Tensor) -> Tensor:
    """Loss weights (N,): all equal, as in LCM and RG-LCD."""
    return torch.ones_like(probabilities)


def inverse_gap_weights(ve_sigma: Tensor, probabilities: Tensor) -> Tensor:
    """Loss weights (N,): inverse to the difference of the noise levels at the two ends of a step.

    Scaled to mean 1 over the draws, so that the learning rate and the reward's weight keep their meaning.
    """
    # lambda(sigma_i) = 1 / (sigma_{i+1} - sigma_i): iCT Sec. 3.2
    weights = 1 / ve_sigma.diff()
    return weights / (probabilities * weights).sum()


def weighted_index(u: Tensor, weights: Tensor) -> Tensor:
    """Grid indices (B,) drawn in proportion to `weights` (N,) >= 0, by inverting their distribution function."""
    cumulative = weights.to(torch.promote_types(weights.dtype, u.dtype)).cumsum(dim=0)
    cumulative = cumulative / cumulative[-1]
    # right=True: u in [F(i-1), F(i)) gives i, so that a step without weight is never drawn.
    return torch.searchsorted(cumulative, u.to(cumulative), right=True)


def doubling_curriculum(step: int, *, total_steps: int, s0: int, s1: int) -> int:
    """Number of grid steps N at training step `step`: s0, 2 s0, 4 s0, ..., s1, in stages of equal length.

    Raises ValueError unless 0 <= step < total_steps and 1 <= s0 <= s1.
    """
    if not 0 <= step < total_steps or not 1 <= s0 <= s1:
        raise ValueError(f"need 0 <= step < total_steps and 1 <= s0 <= s1, got {step=} {total_steps=} {s0=} {s1=}")
    num_stages = (-(-s1 // s0) - 1).bit_length() + 1
    # N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = K / (log2(s1/s0) + 1): iCT Sec. 3.4; our N counts steps, not ends
    return min(s0 << (step * num_stages // total_steps), s1)
