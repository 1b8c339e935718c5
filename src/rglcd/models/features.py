"""The vision models whose features distances compare, chosen by ``kind`` in the configuration.

auto        any vision model that transformers' ``AutoModel`` opens and that pools its output
inception   FID's Inception-v3 (:mod:`rglcd.models.inception`)
dinov2      DINOv2 ViT-L/14, its class token (FD-DINOv2: Stein et al., arXiv 2306.04675)
clip        CLIP ViT-L/14 at 336 pixels, its projected unit vectors (CMMD: Jayasumana et al., arXiv 2401.09603)
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from rglcd.errors import InputError
from rglcd.models.inception import NAME as INCEPTION
from rglcd.models.inception import SIDE, load_inception
from rglcd.models.loading import load_weights, read_json, weights_digest

_BICUBIC: Final = 3
_RESAMPLINGS: Final[Mapping[int, Literal["bilinear", "bicubic"]]] = {2: "bilinear", _BICUBIC: "bicubic"}
"""By Pillow's numbers, which processors write."""

FeatureFn = Callable[[Tensor], Tensor]
"""pixels (B, 3, H, W) in [0, 1] -> features (B, D)."""


def load_features(kind: str, folder: Path, *, device: torch.device) -> FeatureFn:
    """The feature network of ``kind`` whose weights are in ``folder``.

    Raises :class:`InputError` for an unknown kind or a folder that holds no such model.
    """
    if kind not in _LOADERS:
        raise InputError(f"features.kind {kind!r} is unknown; there are: {', '.join(sorted(_LOADERS))}")
    return _LOADERS[kind](folder, device)


@dataclass(frozen=True)
class Preprocessing:
    """What a vision model's processor makes of square pixels: resized to ``size`` (None: as they are), the middle ``crop`` pixels cut
    out of that (None: all of it), then (pixels - mean) / std per channel."""

    size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: int | None = None
    resample: Literal["bilinear", "bicubic"] = "bicubic"

    @property
    def words(self) -> str:
        """What is done to the shape of a picture."""
        resized = "pictures as they are" if self.size is None else f"pictures resized to {self.size} pixels ({self.resample})"
        return resized if self.crop in (None, self.size) else f"{resized}, of which the middle {self.crop}"

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.size is not None and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode=self.resample, antialias=True).clamp(0, 1)
        if self.crop is not None:
            if self.crop > min(pixels.shape[-2:]):
                raise InputError(f"the feature network wants {self.crop} pixels a side, and pictures have {min(pixels.shape[-2:])}")
            top, left = ((side - self.crop) // 2 for side in pixels.shape[-2:])
            pixels = pixels[..., top : top + self.crop, left : left + self.crop]
        mean, std = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def described(folder: Path) -> str:
    """The feature network of ``folder`` in words: class, digest of its weights, how pictures come to it."""
    name = next(iter(read_json(folder / "config.json").get("architectures") or []), "a network")
    prepared = INCEPTION_WORDS if name == INCEPTION else read_preprocessing(folder).words
    return f"{name} (weights {weights_digest(folder)[:12]}), {prepared}"


def read_preprocessing(folder: Path) -> Preprocessing:
    """What ``preprocessor_config.json`` says; where there is none, pixels go in as they are.

    Raises :class:`InputError` for a crop that is larger than what it is cut from, and for a resampling that is neither bilinear nor
    bicubic: other features than the processor's would be another distance.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Preprocessing(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    settings = json.loads(path.read_text(encoding="utf-8"))
    normalise = settings.get("do_normalize", True)
    size, crop = _sides(settings)
    if size is not None and crop is not None and crop > size:
        raise InputError(f"{path}: crop_size {crop} is larger than size {size}")
    resample = settings.get("resample", _BICUBIC)
    if resample not in _RESAMPLINGS:
        raise InputError(f"{path}: resample {resample!r} is neither 2 (bilinear) nor 3 (bicubic)")
    return Preprocessing(
        size=size,
        crop=crop,
        resample=_RESAMPLINGS[resample],
        mean=_channels(settings.get("image_mean"), 0.0) if normalise else (0.0, 0.0, 0.0),
        std=_channels(settings.get("image_std"), 1.0) if normalise else (1.0, 1.0, 1.0),
    )


def _sides(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """What the short side is resized to, and the side that is cut out of the middle.

    ConvNeXt's processor has a ``crop_pct`` instead of the latter: below 384 pixels it resizes to ``size / crop_pct`` and cuts
    ``size`` out (transformers, image_processing_convnext.py).
    """
    size = _side(settings.get("size")) if settings.get("do_resize", True) else None
    share = settings.get("crop_pct")
    if share is not None and size is not None and size < 384:
        return int(size / share), size
    return size, _side(settings.get("crop_size")) if settings.get("do_center_crop", False) else None


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
        try:
            with torch.no_grad():
                output = model(pixel_values=preprocess(pixels.to(device, torch.float32)))
        except (TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"{folder}: {type(model).__name__} cannot be called with pictures alone ({said}); name a vision model"
            ) from None
        if getattr(output, "pooler_output", None) is None:
            raise InputError(f"{folder}: {type(model).__name__} does not pool its output; name a vision model that does")
        pooled: Tensor = output.pooler_output
        return pooled.flatten(1)

    # One picture, so that a model that cannot be used is found when it is prepared, not after the training.
    side = preprocess.size or preprocess.crop or _PROBE_SIDE
    features(torch.zeros(1, 3, side, side))
    return features


def _dinov2(folder: Path, device: torch.device) -> FeatureFn:
    """Its pooled output is the class token after the last normalisation, as the authors' own network gives it."""
    _require_sizes(folder, DINOV2_SIZES, read_json(folder / "config.json"), name="DINOv2 ViT-L/14")
    return _auto(folder, device)


def _clip(folder: Path, device: torch.device) -> FeatureFn:
    from transformers import CLIPModel

    config = read_json(folder / "config.json")
    _require_sizes(folder, CLIP_SIZES, config.get("vision_config", {}), name="CLIP ViT-L/14 at 336 pixels")
    model = load_weights(CLIPModel, folder, dtype=torch.float32).to(device).eval().requires_grad_(False)
    del model.text_model, model.text_projection
    return _clip_features(model, read_preprocessing(folder), device)


def _clip_features(model: Any, preprocess: Preprocessing, device: torch.device) -> FeatureFn:
    """Projected unit vectors: google-research/cmmd/embedding.py divides by the norm."""

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        pooled = model.vision_model(pixel_values=preprocess(pixels.to(device, torch.float32))).pooler_output
        unit: Tensor = F.normalize(model.visual_projection(pooled), dim=-1)
        return unit

    return features


DINOV2_SIZES: Final[Mapping[str, Any]] = {"model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}
CLIP_SIZES: Final[Mapping[str, Any]] = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 336}


def _require_sizes(folder: Path, wanted: Mapping[str, Any], found: Mapping[str, Any], *, name: str) -> None:
    """A distance by another network has another name: kind ``auto`` calls it a Fréchet distance, and says by what."""
    for key, value in wanted.items():
        if found.get(key) != value:
            raise InputError(f"{folder}/config.json: {key} is {found.get(key)!r}, and that of {name} is {value!r}; use features.kind auto")


INCEPTION_WORDS: Final = f"pictures resized to {SIDE} pixels (bilinear, as TensorFlow 1)"


def _inception(folder: Path, device: torch.device) -> FeatureFn:
    network = load_inception(folder, device=device)

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        found: Tensor = network(pixels.to(device, torch.float32))
        return found

    return features


_PROBE_SIDE: Final = 64

_LOADERS: dict[str, Callable[[Path, torch.device], FeatureFn]] = {
    "auto": _auto,
    "clip": _clip,
    "dinov2": _dinov2,
    "inception": _inception,
}
