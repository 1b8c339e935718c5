"""The teacher's noise schedule and forward diffusion: z_t = alpha_t z0 + sigma_t eps.

Shapes: B batch, C channels, H x W latent size, T training timesteps.
    z0, z_t, eps (B,C,H,W)    t (B,) integers in [0,T)    alpha, sigma (B,1,1,1), or (T,) as tables
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`values` (B,) as (B,1,...,1) in the dtype and on the device of `like` (B,...), ready to scale it."""
    return values.to(like).reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class NoiseSchedule:
    """`alphas` (T,) falls and `sigmas` (T,) rises: alphas**2 + sigmas**2 = 1, or of a flow, which has a `shift`, alphas + sigmas = 1."""

    alphas: Tensor
    sigmas: Tensor
    shift: float | None = None

    @classmethod
    def from_alphas_cumprod(cls, abar: Tensor) -> Self:
        """The schedule with alpha_t**2 = `abar` (T,), in abar's dtype; bit-equal to diffusers from its own table.

        The last may be 0 (zero terminal SNR, arXiv 2305.08891): there v and x0 still determine both the sample and its noise,
        and eps does not. Raises ValueError unless abar decreases strictly below 1 to that.
        """
        if abar.ndim != 1 or not bool(((abar >= 0) & (abar < 1)).all()) or not bool((abar.diff() < 0).all()):
            raise ValueError("alphas_cumprod must be one-dimensional and decrease strictly inside (0, 1), the last to 0 at least")
        return cls(alphas=abar.sqrt(), sigmas=(1 - abar).sqrt())

    @classmethod
    def scaled_linear(cls, *, beta_start: float, beta_end: float, num_timesteps: int) -> Self:
        """Stable Diffusion's schedule: sqrt(beta) linear in t (latent diffusion, arXiv 2112.10752); in float64."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64)
        return cls.from_alphas_cumprod((1 - roots.square()).cumprod(dim=0))

    @classmethod
    def rectified_flow(cls, *, shift: float = 1.0, num_timesteps: int = 1000) -> Self:
        """A straight path from data to noise, in float64: alpha = 1 - sigma, from 0 at t = 0 to 1 at t = T - 1.

        `shift` > 1 moves the timesteps to more noise. At t > 0 they are those of diffusers' FlowMatchEulerDiscreteScheduler,
        counted from the cleanest; its own table ends at 1/T, one step before the data. Raises ValueError unless shift > 0 and
        finite, and num_timesteps > 1.
        """
        if not 0 < shift < math.inf:
            raise ValueError(f"a flow's shift is positive and finite, not {shift}")
        if num_timesteps < 2:
            raise ValueError(f"a flow has two timesteps at least, not {num_timesteps}")
        even = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        # SD3, arXiv 2403.03206, Eq. 23
        sigmas = shift * even / (1 + (shift - 1) * even)
        sigmas[0] = 0
        return cls(alphas=1 - sigmas, sigmas=sigmas, shift=shift)

    @classmethod
    def trigflow(cls, *, num_timesteps: int = 1000) -> Self:
        """alpha = cos and sigma = sin of an angle from 0 to pi / 2, in float64: sCM's TrigFlow (arXiv 2410.11081, Sec. 3.1).

        For data of standard deviation 1 its network, which gives dx/dt, is a v-prediction of this schedule. SANA-Sprint's pipeline
        draws along it; its students are trained along the flow, which is the same path once z is divided by alpha + sigma.
        """
        angles = torch.linspace(0, torch.pi / 2, num_timesteps, dtype=torch.float64)
        return cls(alphas=angles.cos(), sigmas=angles.sin())

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alphas)

    @property
    def is_flow(self) -> bool:
        """Whether the path from data to noise is straight."""
        return self.shift is not None

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether z_(T-1) is noise alone."""
        return bool(self.alphas[-1] == 0)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same schedule on `device`; move it to the training device once, or every `at` copies the tables there."""
        return type(self)(self.alphas.to(device, dtype), self.sigmas.to(device, dtype), self.shift)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t (B,1,1,1) at `t` (B,), in the dtype and on the device of `like` (B,C,H,W)."""
        alphas, sigmas = self.alphas.to(like.device), self.sigmas.to(like.device)
        return per_sample(alphas[t], like), per_sample(sigmas[t], like)

    def diffuse(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t (B,C,H,W): `z0` with the noise `eps` of time `t` (B,)."""
        alpha, sigma = self.at(t, z0)
        # z_t ~ N(alpha_t z0, sigma_t^2 I): LCM Sec. 3; DDIM Eq. 4
        return alpha * z0 + sigma * eps

    def ve_sigma(self) -> Tensor:
        """Noise in units of the signal (T,), infinite where there is none: the variance exploding sigma of iCT's noise levels."""
        return self.sigmas / self.alphas

    def gap_sigma(self) -> Tensor:
        """Noise levels (T,) between which the gap of a step is finite: :meth:`ve_sigma`, or of a flow, which ends in noise alone, sigma."""
        return self.sigmas if self.is_flow else self.ve_sigma()
