"""Reward models of other installed packages, found by their entry point."""

from importlib.metadata import entry_points
from pathlib import Path

import torch

from rglcd.errors import InputError
from rglcd.rewards.protocol import Reward

ENTRY_POINTS = "rglcd.rewards"
"""The group in which an installed package offers loaders of its own: ``loader(folder | None, *, dtype, device)``."""


def load_entry_point(folder: Path, *, dtype: torch.dtype, device: torch.device, name: str, has_weights: bool) -> Reward:
    """The reward that an installed package offers as ``name``. Raises :class:`InputError`."""
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise InputError(f"no installed package offers the reward {name!r} in the entry point group {ENTRY_POINTS}; there are: {known}")
    reward = offered[name].load()(folder if has_weights else None, dtype=dtype, device=device)
    if not isinstance(reward, Reward):
        raise InputError(f"{offered[name].value} gave a {type(reward).__name__}, which is no Reward (rglcd.rewards.protocol)")
    return reward
