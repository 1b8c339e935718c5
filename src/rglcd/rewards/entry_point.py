"""Reward models of other installed packages, found by their entry point."""

from collections.abc import Mapping
from pathlib import Path

import torch

from rglcd.errors import InputError
from rglcd.rewards.installed_code import code_of, in_words, offered_reward
from rglcd.rewards.protocol import Reward


def load_entry_point(
    folder: Path, *, dtype: torch.dtype, device: torch.device, name: str, has_weights: bool, code: Mapping[str, str] | None = None
) -> Reward:
    """The reward that an installed package offers as ``name``, whose ``code`` must be as ``prepare`` found it.

    Raises :class:`InputError` when nothing offers it, when it is no reward, and when its code is not ``code``.
    """
    if code is not None and (found := code_of(name)) != code:
        raise InputError(f"the reward {name!r} is {in_words(found)}, and {in_words(code)} was prepared; run: rglcd run prepare")
    entry = offered_reward(name)
    reward = entry.load()(folder if has_weights else None, dtype=dtype, device=device)
    if not isinstance(reward, Reward):
        raise InputError(f"{entry.value} gave a {type(reward).__name__}, which is no Reward (rglcd.rewards.protocol)")
    return reward
