"""Randomness as a function of (seed, sample): nothing to save, nothing to lose, the same for any number of ranks.

The sample in row r of the global batch of step k is number k * batch_size + r of the run. Each has a generator of its own, so a
process draws for its own rows, whatever it is to draw, and for no others.

Shapes: B a process's rows, (C, h, w) latents.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rglcd.core.dropout import scrambled
from rglcd.training.distributed import World

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class _Draws:
    """Tensors by name."""

    def placed(self, world: World) -> Self:
        """The same on this process's device."""
        return type(self)(*(world.to_device(tensor) for tensor in vars(self).values()))


@dataclass(frozen=True)
class BatchDraws(_Draws):
    """The draws of B samples, float32.

    ``posterior`` and ``eps`` (B, C, h, w) are standard normal; ``grid``, ``omega`` and ``caption`` (B,) uniform in [0, 1).
    """

    posterior: Tensor
    eps: Tensor
    grid: Tensor
    omega: Tensor
    caption: Tensor


@dataclass(frozen=True)
class PredictionDraws(_Draws):
    """What a prediction for the reward alone needs: ``eps`` (B, C, h, w) standard normal, ``grid`` (B,) uniform in [0, 1)."""

    eps: Tensor
    grid: Tensor


def generator_for(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on all three and on nothing else: for what a step draws once, whatever its samples."""
    name = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(name[:8], "big") >> 1)


def draw_batch(seed: int, step: int, *, batch_size: int, rows: slice, latent_shape: tuple[int, int, int]) -> BatchDraws:
    """What training step ``step`` draws for ``rows`` of its ``batch_size`` samples, on the CPU."""
    words = _words(seed, "batch", step, batch_size=batch_size, rows=rows)
    (grid, omega, caption), (posterior, eps) = _drawn(words, num_uniform=3, num_normal=2, shape=latent_shape)
    return BatchDraws(posterior=posterior, eps=eps, grid=grid, omega=omega, caption=caption)


def draw_posterior(seed: int, step: int, *, batch_size: int, rows: slice, latent_shape: tuple[int, int, int]) -> Tensor:
    """Standard normal (B, C, h, w) for ``rows`` of the ``batch_size`` samples of step ``step``, on the CPU."""
    _, (posterior,) = _drawn(
        _words(seed, "posterior", step, batch_size=batch_size, rows=rows), num_uniform=0, num_normal=1, shape=latent_shape
    )
    return posterior


def draw_prediction(seed: int, step: int, *, batch_size: int, rows: slice, latent_shape: tuple[int, int, int]) -> PredictionDraws:
    """The reward's own randomness for ``rows`` of the ``batch_size`` samples of training step ``step``, on the CPU."""
    words = _words(seed, "reward", step, batch_size=batch_size, rows=rows)
    (grid,), (eps,) = _drawn(words, num_uniform=1, num_normal=1, shape=latent_shape)
    return PredictionDraws(eps=eps, grid=grid)


def draw_seeds(seed: int, step: int, *, batch_size: int, rows: slice) -> Tensor:
    """A 32-bit word for each of ``rows`` (B,) of training step ``step``, in int64: what its dropout masks are made from."""
    return _words(seed, "dropout", step, batch_size=batch_size, rows=rows)


def _drawn(words: Tensor, *, num_uniform: int, num_normal: int, shape: tuple[int, int, int]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """From a generator for each of B ``words``, in turn: so many uniform numbers, as columns (B,), then normal arrays (B, *shape)."""
    generator = torch.Generator()
    uniform = torch.empty(len(words), num_uniform, dtype=torch.float32)
    normal = [torch.empty(len(words), *shape, dtype=torch.float32) for _ in range(num_normal)]
    for word, numbers, *arrays in zip(words.tolist(), uniform.unbind(), *(whole.unbind() for whole in normal), strict=True):
        generator.manual_seed(word)
        if num_uniform:
            numbers.uniform_(generator=generator)
        for array in arrays:
            array.normal_(generator=generator)
    return uniform.T.contiguous().unbind(), normal


def _words(seed: int, purpose: str, step: int, *, batch_size: int, rows: slice) -> Tensor:
    """A 32-bit word (B,) for each of ``rows``, in int64: the samples' numbers under a permutation that ``seed`` and ``purpose`` choose.

    torch's generator on a CPU, a Mersenne twister, is seeded by 32 bits and no more. Under a permutation no two samples of a run
    have the same before there are 2^32 of them; of hashes of their numbers, some hundred pairs would be equal in a million.
    """
    words = torch.arange(step * batch_size + rows.start, step * batch_size + rows.stop)
    name = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    for key in (name[:4], name[4:8]):
        words = scrambled((words & _WORD) ^ int.from_bytes(key, "big"))
    return words
