"""ImageReward (arXiv 2304.05977): BLIP's text encoder reads the caption while it looks at the picture, and a head gives the score.

A caption has no features of its own here: its token ids are cached. Written from the published model
(THUDM/ImageReward, ImageReward.py and models/BLIP) on transformers' BLIP modules, whose tensors the published ones become by
renaming (:mod:`rglcd.rewards.conversion`).

Shapes: B batch, L token positions, D width.
"""

import json
import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, PreTrainedTokenizerBase
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from rglcd.errors import InputError
from rglcd.models.loading import load_tokenizer, read_json, weights_digest
from rglcd.models.precision import at_least_float32, widened
from rglcd.rewards.head import score_head
from rglcd.rewards.preprocessing import Fit, Preprocessing

ARCHITECTURE = "ImageReward"
MAX_TOKENS = 35
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
"""Mean and deviation of the head's output over the authors' images: the score is the standardised output."""


class Form(Enum):
    """Which function of the score r is the reward."""

    RAW = "raw"
    HINGE = "hinge"
    """-ReLU(2 - r): r - 2 up to 2, and flat above, as ReFL's loss and the RG-LCD authors' reward have it."""


class ImageRewardNetwork(nn.Module):
    """``network(pixels, ids, mask)``: the head's output (B,) for prepared pixels (B, 3, S, S), token ids and attention mask (B, L)."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, head: Sequence[int]) -> None:
        super().__init__()
        self.vision_model = BlipVisionModel(vision)
        self.text_model = BlipTextModel(text, add_pooling_layer=False)
        self.head = score_head(head)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        image = self.vision_model(pixel_values=pixels).last_hidden_state
        # As a bias on the attention logits: given a mask, transformers checks whether it is all ones, a synchronisation.
        bias = torch.zeros(mask.shape, dtype=image.dtype, device=image.device).masked_fill(~mask, torch.finfo(image.dtype).min)
        read = self.text_model(input_ids=ids, attention_mask=bias[:, None, None], encoder_hidden_states=image).last_hidden_state
        return torch.as_tensor(self.head(at_least_float32(read[:, 0]))).squeeze(1)

    @property
    def image_size(self) -> int:
        return int(self.vision_model.config.image_size)


class ImageReward:
    """The published score (about standard normal over its authors' images), differentiable in the pixels."""

    differentiable: Literal[True] = True
    text_width = MAX_TOKENS
    # Its pairwise training compared the head's own outputs, which are _STD times the score (and a constant).
    logit_scale = _STD

    def __init__(self, network: ImageRewardNetwork, tokenizer: PreTrainedTokenizerBase, *, form: Form, folder: Path) -> None:
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.form = form
        self._preprocessing = Preprocessing.of(Fit.SHORTEST_CROPPED).like(self._weight)
        self._folder = folder

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, form: str) -> "ImageReward":
        """The model that ``prepare`` converted to ``folder``. Raises :class:`InputError`."""
        network = load_network(folder).to(device)
        network.vision_model.to(dtype)
        network.text_model.to(dtype)
        network.head.to(widened(dtype))
        return cls(network, load_tokenizer(folder), form=Form(form), folder=folder)

    @property
    def range(self) -> tuple[float, float]:
        return -math.inf, math.inf if self.form is Form.RAW else 0.0

    def weights_sha256(self) -> str:
        return weights_digest(self._folder)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Token ids: int64 (B, 35)."""
        encoded = self.tokenizer(list(captions), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return torch.as_tensor(encoded["input_ids"], dtype=torch.int64).to(self._weight.device)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Scores (B,) of pixels (B, 3, H, W) in [0, 1] for token numbers (B, 35)."""
        prepared = self._preprocessing(pixels, self.network.image_size)
        ids = text.long().to(self._weight.device)
        score: Tensor = (self.network(prepared, ids, self._mask(ids)) - _MEAN) / _STD
        return score if self.form is Form.RAW else -torch.relu(2 - score)

    def _mask(self, ids: Tensor) -> Tensor:
        """True up to the last separator, which ends every caption, False in the padding after it."""
        ends = (ids == self.tokenizer.sep_token_id).long()
        return torch.as_tensor(ends.flip(1).cumsum(dim=1).flip(1) > 0)

    @property
    def _weight(self) -> Tensor:
        """Any of the weights: what dtype and device they are."""
        return next(self.network.parameters())


def load_network(folder: Path) -> ImageRewardNetwork:
    """The network in ``folder``: ``config.json`` and ``model.safetensors``. Raises :class:`InputError`."""
    declared = read_json(folder / "config.json")
    if declared.get("architecture") != ARCHITECTURE:
        raise InputError(
            f"{folder}/config.json does not describe an {ARCHITECTURE}: name ImageReward.pt as `file`, and prepare converts it"
        )
    try:
        network = build_network(declared)
        network.load_state_dict(load_file(str(folder / "model.safetensors")))
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be opened as {ARCHITECTURE}: {' '.join(str(error).split())[:300]}") from None
    return network


def build_network(declared: dict[str, Any]) -> ImageRewardNetwork:
    """The network that a ``config.json`` describes, with weights yet to come."""
    return ImageRewardNetwork(BlipVisionConfig(**declared["vision"]), BlipTextConfig(**declared["text"]), declared["head"])


def config_text(vision: dict[str, Any], text: dict[str, Any], head: Sequence[int]) -> str:
    """The ``config.json`` of :func:`load_network`."""
    return json.dumps({"architecture": ARCHITECTURE, "vision": vision, "text": text, "head": list(head)}, indent=1) + "\n"
