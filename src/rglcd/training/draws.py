"""Randomness as a function of (seed, step): nothing to save, nothing to lose, the same for any number of ranks."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from rglcd.training.distributed import World


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

    def rows(self, rows: slice, world: World) -> "BatchDraws":
        """Some samples' draws, on this process's device."""
        return BatchDraws(*(world.to_device(tensor[rows]) for tensor in vars(self).values()))


@dataclass(frozen=True)
class PredictionDraws:
    """What a prediction for the reward alone needs: ``eps`` (B, C, h, w) standard normal, ``grid`` (B,) uniform in [0, 1)."""

    eps: Tensor
    grid: Tensor

    def rows(self, rows: slice, world: World) -> "PredictionDraws":
        """Some samples' draws, on this process's device."""
        return PredictionDraws(*(world.to_device(tensor[rows]) for tensor in vars(self).values()))


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


def draw_prediction(seed: int, step: int, *, batch_size: int, latent_shape: tuple[int, int, int]) -> PredictionDraws:
    """The reward's own randomness at training step ``step``."""
    generator = generator_for(seed, step, "reward")
    grid = torch.rand(batch_size, generator=generator)
    return PredictionDraws(eps=torch.randn(batch_size, *latent_shape, generator=generator), grid=grid)


def draw_seeds(seed: int, step: int, *, batch_size: int) -> Tensor:
    """A 32-bit word (B,) for each sample of training step ``step``, in int64: what its dropout masks are made from."""
    return torch.randint(2**32, (batch_size,), generator=generator_for(seed, step, "dropout"))
