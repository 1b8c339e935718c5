"""CLIP-type reward models: the cosine of an image's and a caption's embedding.

HPSv2, PickScore and CLIPScore are all of this form; so is the toy world's expert. The preprocessing is
done on the whole batch, in tensors, inside the graph, so the score back-propagates to the pixels.

Shapes: B batch, (H, W) pixels, D embedding width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import CLIPModel, PreTrainedTokenizerBase

from rglcd.errors import InputError
from rglcd.models.loading import load_tokenizer, load_weights, read_json


class ClipReward:
    """A frozen ``CLIPModel`` folder with its tokenizer and ``preprocessor_config.json`` as a differentiable reward."""

    differentiable: Literal[True] = True
    range = (-1.0, 1.0)

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._mean = torch.tensor(mean, device=model.device, dtype=model.dtype).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=model.device, dtype=model.dtype).view(1, 3, 1, 1)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "ClipReward":
        """The model of ``folder``, whose ``preprocessor_config.json`` gives the normalisation."""
        model = load_weights(CLIPModel, folder, dtype=dtype).to(device)
        preprocessing = read_json(folder / "preprocessor_config.json")
        if not {"image_mean", "image_std"} <= preprocessing.keys():
            raise InputError(f"{folder}/preprocessor_config.json must give image_mean and image_std")
        return cls(model, load_tokenizer(folder), mean=preprocessing["image_mean"], std=preprocessing["image_std"])

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
        pooled = self.model.text_model(ids.to(self.model.device)).pooler_output
        return normalize(self.model.text_projection(pooled), dim=-1)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Cosine (B,) of pixels (B, 3, H, W) in [0, 1] and text features (B, D)."""
        pooled = self.model.vision_model(pixel_values=self._preprocess(pixels)).pooler_output
        image = normalize(self.model.visual_projection(pooled), dim=-1)
        return (image * text.to(image.dtype)).sum(dim=-1)

    def _preprocess(self, pixels: Tensor) -> Tensor:
        """Resize to the tower's size if need be (bicubic with antialiasing, as PIL does), then normalise."""
        size = self.model.config.vision_config.image_size
        pixels = pixels.to(self.model.dtype)
        if pixels.shape[-2:] != (size, size):
            pixels = interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self._mean) / self._std
