"""LAION's aesthetic predictors: a head on the normalised image embedding of CLIP ViT-L/14. They read no caption.

v1 is one linear layer (LAION-AI/aesthetic-predictor), v2 five (christophschuhmann/improved-aesthetic-predictor).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from rglcd.errors import InputError
from rglcd.models.loading import load_weights, weights_digest
from rglcd.models.precision import at_least_float32, widened
from rglcd.rewards.head import load_head
from rglcd.rewards.preprocessing import Fit, Preprocessing


class AestheticReward:
    """The predicted rating, 1 to 10 in the data it was fitted to; nothing bounds it."""

    differentiable: Literal[True] = True
    range = (-math.inf, math.inf)
    text_width = 0

    def __init__(self, model: CLIPModel, head: nn.Sequential, *, logit_scale: float, folder: Path) -> None:
        # The text tower is not kept: it is half of the memory.
        self.vision = model.vision_model.eval().requires_grad_(False)
        self.projection = model.visual_projection.requires_grad_(False)
        self.head = head
        self.logit_scale = logit_scale
        self._preprocessing = Preprocessing.of(Fit.SHORTEST_CROPPED).like(self.projection.weight)
        self._folder = folder

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, logit_scale: float) -> "AestheticReward":
        """The ``CLIPModel`` and the head of ``folder``. Raises :class:`InputError`."""
        model = load_weights(CLIPModel, folder, dtype=dtype).to(device)
        head = load_head(folder).to(device=device, dtype=widened(dtype))
        wanted = next(head.parameters()).shape[1]
        if model.config.projection_dim != wanted:
            raise InputError(
                f"{folder}: the head takes {wanted} features and the CLIP model gives {model.config.projection_dim}; "
                "name the CLIP model that the head was trained on"
            )
        return cls(model, head, logit_scale=logit_scale, folder=folder)

    def weights_sha256(self) -> str:
        return weights_digest(self._folder)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Nothing (B, 0)."""
        return torch.zeros(len(captions), 0, device=self.projection.weight.device)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The rating (B,) of pixels (B, 3, H, W) in [0, 1]."""
        prepared = self._preprocessing(pixels, self.vision.config.image_size)
        image = normalize(at_least_float32(self.projection(self.vision(pixel_values=prepared).pooler_output)), dim=-1)
        return torch.as_tensor(self.head(image)).squeeze(1)
