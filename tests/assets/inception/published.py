"""Weights in the published layout and pictures, drawn by numpy's generator: the same in any environment."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

NUM_PICTURES = 6


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """A value for each name by itself, so that the order does not matter; of a size that keeps activations alive through 94 layers."""
    return {name: _drawn(name, tuple(shape)) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    draws = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    if name.endswith("running_var"):
        return draws.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("bn.weight"):
        return draws.uniform(0.8, 1.2, shape).astype(np.float32)
    if name.endswith("conv.weight"):
        return (draws.standard_normal(shape, dtype=np.float32) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    return draws.normal(0, 0.1, shape).astype(np.float32)


def pictures(side: int, *, seed: int) -> np.ndarray:
    """uint8 (N, 3, side, side): a coarse pattern with fine noise on it."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (NUM_PICTURES, 3, 4, 4)).repeat(-(-side // 4), axis=2).repeat(-(-side // 4), axis=3)[:, :, :side, :side]
    return np.clip(coarse + draws.normal(0, 12, coarse.shape), 0, 255).round().astype(np.uint8)
