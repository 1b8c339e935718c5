"""Reward models by the ``kind`` that a configuration names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rglcd.errors import InputError
from rglcd.rewards.protocol import Reward

Loader = Callable[..., Reward]
"""``loader(folder, *, dtype, device, **settings)``."""

Settings = Mapping[str, Any]
"""What ``scorers.json`` says of one scorer: its ``kind``, and what that kind is told."""


def _clip(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.rewards.clip import ClipReward

    return ClipReward.load(folder, dtype=dtype, device=device)


def _toy_judge(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.toy.judge import ToyJudge

    return ToyJudge.from_pretrained(folder).to(device=device, dtype=dtype)


def _toy_checker(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.toy.checker import CheckerReward

    return CheckerReward()


_LOADERS: dict[str, Loader] = {"clip": _clip, "toy-judge": _toy_judge, "toy-checker": _toy_checker}
_WITHOUT_WEIGHTS = frozenset({"toy-checker"})


def scorer_kinds() -> list[str]:
    """The kinds that :func:`load_scorer` knows."""
    return sorted(_LOADERS)


def needs_weights(kind: str) -> bool:
    """Whether a scorer of ``kind`` comes with a folder of weights; :class:`InputError` for an unknown kind."""
    if kind not in _LOADERS:
        raise InputError(f"unknown scorer kind {kind!r}; there are: {', '.join(scorer_kinds())}")
    return kind not in _WITHOUT_WEIGHTS


def load_scorer(kind: str, folder: Path, *, dtype: torch.dtype, device: torch.device, **settings: Any) -> Reward:
    """The reward model of ``kind`` whose weights lie in ``folder``. Raises :class:`InputError`."""
    needs_weights(kind)
    return _LOADERS[kind](folder, dtype=dtype, device=device, **settings)
