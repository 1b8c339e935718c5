"""The vision model whose features the Fréchet distance compares, chosen by ``kind`` in the configuration."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from rglcd.errors import InputError

FeatureFn = Callable[[Tensor], Tensor]
"""pixels (B, 3, H, W) in [0, 1] -> features (B, D)."""


def load_features(kind: str, folder: Path, *, device: torch.device) -> FeatureFn:
    """The feature network of ``kind`` whose weights are in ``folder``.

    ``auto`` is any vision model that transformers' ``AutoModel`` opens and that pools its output. Raises
    :class:`InputError` for an unknown kind or a folder that holds no such model.
    """
    if kind not in _LOADERS:
        raise InputError(f"features.kind {kind!r} is unknown; there are: {', '.join(sorted(_LOADERS))}")
    return _LOADERS[kind](folder, device)


@dataclass(frozen=True)
class Preprocessing:
    """What a vision model expects: the side it was trained at (None: any), then (pixels - mean) / std per channel."""

    size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.size is not None and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def read_preprocessing(folder: Path) -> Preprocessing:
    """What ``preprocessor_config.json`` says; where there is none, pixels go in as they are."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Preprocessing(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    settings = json.loads(path.read_text(encoding="utf-8"))
    normalise = settings.get("do_normalize", True)
    return Preprocessing(
        size=_side(settings.get("size")) if settings.get("do_resize", True) else None,
        mean=_channels(settings.get("image_mean"), 0.0) if normalise else (0.0, 0.0, 0.0),
        std=_channels(settings.get("image_std"), 1.0) if normalise else (1.0, 1.0, 1.0),
    )


def _side(size: int | Mapping[str, int] | None) -> int | None:
    if isinstance(size, Mapping):
        return size.get("shortest_edge") or size.get("height")
    return size


def _channels(values: Any, default: float) -> tuple[float, float, float]:
    red, green, blue = values if values is not None else (default,) * 3
    return float(red), float(green), float(blue)


def _auto(folder: Path, device: torch.device) -> FeatureFn:
    from transformers import AutoModel

    try:
        opened, report = AutoModel.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be opened as a vision model: {' '.join(str(error).split())[:300]}") from None
    if report["missing_keys"]:
        # transformers would fill them with random numbers, and the distance would mean nothing.
        raise InputError(f"{folder} lacks {len(report['missing_keys'])} tensors, {min(report['missing_keys'])} the first")
    model: nn.Module = opened.to(device).eval().requires_grad_(False)
    preprocess = read_preprocessing(folder)

    def features(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            output = model(pixel_values=preprocess(pixels.to(device, torch.float32)))
        if getattr(output, "pooler_output", None) is None:
            raise InputError(f"{folder}: {type(model).__name__} does not pool its output; name a vision model that does")
        pooled: Tensor = output.pooler_output
        return pooled.flatten(1)

    return features


_LOADERS: dict[str, Callable[[Path, torch.device], FeatureFn]] = {"auto": _auto}
