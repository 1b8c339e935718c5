"""Reward models by the ``kind`` that a configuration names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from rglcd.errors import InputError
from rglcd.rewards.protocol import Reward

Loader = Callable[..., Reward]
"""``loader(folder, *, dtype, device, **settings)``."""

Catalogue = Mapping[str, Mapping[str, Any]]
"""The content of ``catalogue/``: by scorer name its ``kind`` and that kind's settings."""

# Import paths, not functions: a kind's module, and what it needs, is imported when a scorer of that kind is opened.
_LOADERS: Mapping[str, str] = {
    "clip": "rglcd.rewards.clip:ClipReward.load",
    "hpsv2": "rglcd.rewards.clip:ClipReward.hpsv2",
    "clipscore": "rglcd.rewards.clip:ClipReward.clipscore",
    "pickscore": "rglcd.rewards.clip:ClipReward.pickscore",
    "imagereward": "rglcd.rewards.imagereward:ImageReward.load",
    "aesthetic-v1": "rglcd.rewards.aesthetic:AestheticReward.load",
    "aesthetic-v2": "rglcd.rewards.aesthetic:AestheticReward.load",
    "hpsv2-process": "rglcd.rewards.hpsv2_process:Hpsv2ProcessReward.load",
    "process": "rglcd.rewards.process:ProcessReward.load",
    "entry-point": "rglcd.rewards.entry_point:load_entry_point",
    "ocr": "rglcd.rewards.ocr:OcrReward.load",
    "toy-judge": "rglcd.toy.judge:ToyJudge.load",
    "toy-checker": "rglcd.toy.checker:CheckerReward.load",
    "toy-votes": "rglcd.toy.raters:VotesReward.load",
}
_WITHOUT_WEIGHTS = frozenset({"mixture", "ocr", "toy-checker", "toy-votes"})


def open_scorer(name: str, catalogue: Catalogue, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Reward:
    """The scorer ``name`` of ``catalogue``, whose weights, if it has any, lie in ``folder/name``. Raises :class:`InputError`."""
    settings = dict(catalogue[name])
    kind = settings.pop("kind")
    if kind != "mixture":
        return load_scorer(kind, folder / name, dtype=dtype, device=device, **settings)
    from rglcd.rewards.mixture import mixture

    parts = {part: open_scorer(part, catalogue, folder, dtype=dtype, device=device) for part in settings["weights"]}
    return mixture(parts, **settings)


def load_scorer(kind: str, folder: Path, *, dtype: torch.dtype, device: torch.device, **settings: Any) -> Reward:
    """A reward model of ``kind`` (any but a mixture of others) whose weights lie in ``folder``. Raises :class:`InputError`."""
    if kind not in _LOADERS:
        raise InputError(f"unknown scorer kind {kind!r}; there are: {', '.join(scorer_kinds())}")
    loader: Loader = resolve_name(_LOADERS[kind])
    return loader(folder, dtype=dtype, device=device, **settings)


def scorer_kinds() -> list[str]:
    """The kinds that :func:`load_scorer` knows."""
    return sorted(_LOADERS)


def has_weights(name: str, catalogue: Catalogue) -> bool:
    """Whether the scorer ``name`` comes with a folder of weights of its own."""
    settings = catalogue[name]
    return bool(settings["has_weights"]) if "has_weights" in settings else settings["kind"] not in _WITHOUT_WEIGHTS
