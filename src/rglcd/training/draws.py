"""Randomness as a function of (seed, step): nothing to save, nothing to lose, the same for any number of ranks."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchDraws:
    """The draws of one global batch of B samples, on the CPU.

    ``posterior`` and ``eps`` (B, C, h, w) are standard normal; ``grid``, ``omega`` and ``caption`` (B,) uniform in [0, 1).
    """

    posterior: Tensor
    eps: Tensor
    grid: Tensor
    omega: Tensor
    caption: Tensor

    def rows(self, rows: slice, device: torch.device) -> "BatchDraws":
        """Some samples' draws, on ``device``."""
        return BatchDraws(*(tensor[rows].to(device, non_blocking=True) for tensor in vars(self).values()))


def generator_for(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on all three and on nothing else."""
    name = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(name[:8], "big") >> 1)


def draw_batch(seed: int, step: int, *, batch_size: int, latent_shape: tuple[int, int, int]) -> BatchDraws:
    """All the randomness of training step ``step``."""
    generator = generator_for(seed, step, "batch")
    uniform = torch.rand(3, batch_size, generator=generator)
    posterior, eps = torch.randn(2, batch_size, *latent_shape, generator=generator)
    return BatchDraws(posterior=posterior, eps=eps, grid=uniform[0], omega=uniform[1], caption=uniform[2])
