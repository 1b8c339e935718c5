"""Reward models by the ``kind`` that a configuration names."""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from rglcd.errors import InputError
from rglcd.rewards.protocol import Reward

Loader = Callable[..., Reward]
"""``loader(folder, *, dtype, device, **settings)``."""

Catalogue = Mapping[str, Mapping[str, Any]]
"""By scorer name what ``scorers.json`` says of it: its ``kind``, and what that kind is told."""

ENTRY_POINTS = "rglcd.rewards"
"""The group in which an installed package offers loaders of its own: ``loader(folder | None, *, dtype, device)``."""


def open_scorer(name: str, catalogue: Catalogue, shelf: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    """The scorer ``name``, whose weights, if it has any, lie in ``shelf/name``. Raises :class:`InputError`."""
    settings = dict(catalogue[name])
    kind = settings.pop("kind")
    if kind != "mixture":
        return load_scorer(kind, shelf / name, dtype=dtype, device=device, **settings)
    from rglcd.rewards.mixture import mixture

    parts = {part: open_scorer(part, catalogue, shelf, dtype=dtype, device=device) for part in settings["weights"]}
    return mixture(parts, **settings)


def load_scorer(kind: str, folder: Path, *, dtype: torch.dtype, device: torch.device, **settings: Any) -> Reward:
    """The reward model of ``kind`` whose weights lie in ``folder``. Raises :class:`InputError`."""
    if kind not in _LOADERS:
        raise InputError(f"unknown scorer kind {kind!r}; there are: {', '.join(scorer_kinds())}")
    return _LOADERS[kind](folder, dtype=dtype, device=device, **settings)


def scorer_kinds() -> list[str]:
    """The kinds that :func:`load_scorer` knows."""
    return sorted(_LOADERS)


def has_weights(name: str, catalogue: Catalogue) -> bool:
    """Whether the scorer ``name`` comes with a folder of weights of its own."""
    settings = catalogue[name]
    return bool(settings["has_weights"]) if settings["kind"] == "entry-point" else settings["kind"] not in _WITHOUT_WEIGHTS


# Each loader imports what it needs when it is called: a line that runs the toy opens no BLIP.


def _clip(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.rewards.clip import ClipReward

    return ClipReward.load(folder, dtype=dtype, device=device)


def _hpsv2(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.rewards.clip import ClipReward

    return ClipReward.hpsv2(folder, dtype=dtype, device=device)


def _clipscore(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.rewards.clip import ClipReward

    return ClipReward.clipscore(folder, dtype=dtype, device=device)


def _pickscore(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.rewards.clip import ClipReward

    return ClipReward.pickscore(folder, dtype=dtype, device=device)


def _imagereward(folder: Path, *, dtype: torch.dtype, device: torch.device, form: str) -> Reward:
    from rglcd.rewards.imagereward import ImageReward

    return ImageReward.load(folder, dtype=dtype, device=device, form=form)


def _aesthetic(folder: Path, *, dtype: torch.dtype, device: torch.device, logit_scale: float) -> Reward:
    from rglcd.rewards.aesthetic import AestheticReward

    return AestheticReward.load(folder, dtype=dtype, device=device, logit_scale=logit_scale)


def _hpsv2_process(folder: Path, *, dtype: torch.dtype, device: torch.device, interpreter: str) -> Reward:
    from rglcd.rewards.hpsv2_process import Hpsv2ProcessReward

    return Hpsv2ProcessReward(folder, interpreter=interpreter, device=device)


def _entry_point(folder: Path, *, dtype: torch.dtype, device: torch.device, name: str, has_weights: bool) -> Reward:
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise InputError(f"no installed package offers the reward {name!r} in the entry point group {ENTRY_POINTS}; there are: {known}")
    reward = offered[name].load()(folder if has_weights else None, dtype=dtype, device=device)
    if not isinstance(reward, Reward):
        raise InputError(f"{offered[name].value} gave a {type(reward).__name__}, which is no Reward (rglcd.rewards.protocol)")
    return reward


def _toy_judge(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.toy.judge import ToyJudge

    return ToyJudge.from_pretrained(folder).to(device=device, dtype=dtype)


def _toy_checker(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    from rglcd.toy.checker import CheckerReward

    return CheckerReward()


_LOADERS: dict[str, Loader] = {
    "clip": _clip,
    "hpsv2": _hpsv2,
    "clipscore": _clipscore,
    "pickscore": _pickscore,
    "imagereward": _imagereward,
    "aesthetic-v1": _aesthetic,
    "aesthetic-v2": _aesthetic,
    "hpsv2-process": _hpsv2_process,
    "entry-point": _entry_point,
    "toy-judge": _toy_judge,
    "toy-checker": _toy_checker,
}
_WITHOUT_WEIGHTS = frozenset({"mixture", "toy-checker"})
