"""One DDIM step of the probability-flow ODE on the skipped grid: from t down to its neighbour s < t.

Shapes: index (B,) integers in [0,N)    t, s (B,) integers in [0,T)    x0, eps, z_s (B,C,H,W)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rglcd.core.prediction import Prediction
from rglcd.core.schedule import NoiseSchedule


@dataclass(frozen=True)
class TimestepPair:
    """Neighbours on the grid, `t` > `s` (B,)."""

    t: Tensor
    s: Tensor


@dataclass(frozen=True)
class DDIMSolver:
    """N = `num_steps` equal skips of k = T/N timesteps: 0, k - 1, 2k - 1, ..., T - 1, rounded up where k is not whole.

    Skipping k timesteps at once is what makes latent consistency distillation converge quickly (LCM Sec. 4.3).
    Raises ValueError unless 1 <= num_steps < T.
    """

    schedule: NoiseSchedule
    num_steps: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps < self.schedule.num_timesteps:
            raise ValueError(f"num_steps must be in [1, {self.schedule.num_timesteps}), not {self.num_steps}")

    @property
    def boundaries(self) -> Tensor:
        """The N + 1 ends of the steps, {0, 19, 39, ..., 999} for N = 50 and T = 1000; increasing, int64."""
        return self._boundary(torch.arange(self.num_steps + 1))

    @property
    def timesteps(self) -> Tensor:
        """The N starts of the steps, {19, 39, ..., 999} for N = 50 and T = 1000; increasing, int64."""
        return self.boundaries[1:]

    def pair(self, index: Tensor) -> TimestepPair:
        """Start and end of the steps `index` (B,): t = k (index + 1) - 1 and s = max(t - k, 0)."""
        return TimestepPair(t=self._boundary(index + 1), s=self._boundary(index))

    def step(self, prediction: Prediction, s: Tensor) -> Tensor:
        """z_s (B,C,H,W), where the ODE is at time `s` (B,) if `prediction` holds all the way down to it."""
        alpha, sigma = self.schedule.at(s, prediction.x0)
        # DDIM Eq. 12 without its noise; the solver Psi of LCM Sec. 4.1
        return alpha * prediction.x0 + sigma * prediction.eps

    def _boundary(self, index: Tensor) -> Tensor:
        # Arithmetic, not a table, so that indices drawn on a device never wait for a copy.
        num_timesteps = self.schedule.num_timesteps
        return ((index * num_timesteps + self.num_steps - 1) // self.num_steps - 1).clamp(min=0)
