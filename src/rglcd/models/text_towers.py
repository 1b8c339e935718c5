"""Text encoders with their tokenizers, as diffusers' pipeline folders hold them: captions to token ids.

Shapes: B batch, L token positions. A pipeline with several encoders has their ids side by side in L.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase

from rglcd.errors import InputError
from rglcd.models.loading import load_tokenizer, load_weights

CLIP_TOKENS: Final = 77
"""Length of every caption as the published CLIP text encoders read it."""

_NO_LENGTH = 10**9
"""transformers gives a tokenizer that declares no length 10**30."""


@dataclass(frozen=True)
class TextPart:
    """A pipeline's text encoder and tokenizer by their sub-folders, its class, and how many tokens it is given.

    ``num_tokens`` is None where that is the tokenizer's own length, as CLIP's.
    """

    encoder: str
    tokenizer: str
    kind: type[PreTrainedModel]
    num_tokens: int | None = None


@dataclass(frozen=True)
class TextTower:
    """One encoder and its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    num_tokens: int | None = None

    @property
    def length(self) -> int:
        """Token positions, of every caption."""
        return int(self.tokenizer.model_max_length) if self.num_tokens is None else self.num_tokens

    def ids(self, captions: Sequence[str], *, length: int | None = None) -> Tensor:
        """Ids (B, L) of ``captions``, padded and cut to ``length``, or to the tower's own."""
        options: dict[str, Any] = {"padding": "max_length", "max_length": self.length if length is None else length, "truncation": True}
        return torch.as_tensor(self.tokenizer(list(captions), return_tensors="pt", **options)["input_ids"], dtype=torch.int64)

    def mask(self, ids: Tensor) -> Tensor:
        """(B, L) bool: true where ``ids`` are no padding. For T5 and Gemma, whose padding is a token of its own."""
        padding: int = self.tokenizer.pad_token_id
        return ids.ne(padding)


def load_tower(part: TextPart, folder: Path, *, dtype: torch.dtype, device: torch.device) -> TextTower:
    """The encoder and tokenizer of ``part`` of the pipeline in ``folder``. Raises :class:`InputError`."""
    model = load_weights(part.kind, folder / part.encoder, dtype=dtype).to(device)
    tower = TextTower(model, load_tokenizer(folder / part.tokenizer), part.num_tokens)
    # Gemma's pads on the left by default, and diffusers' pipelines set the right; all others pad on the right anyway.
    tower.tokenizer.padding_side = "right"
    _require_fit(tower, encoder=folder / part.encoder, tokenizer=folder / part.tokenizer)
    return tower


def _require_fit(tower: TextTower, *, encoder: Path, tokenizer: Path) -> None:
    """Raise :class:`InputError` for a tokenizer that makes what the encoder cannot read. diffusers' pipelines fail there too."""
    vocabulary = int(tower.model.config.vocab_size)
    if isinstance(tower.model, CLIPTextModel | CLIPTextModelWithProjection):
        positions = int(tower.model.config.max_position_embeddings)
        if not 1 <= tower.tokenizer.model_max_length <= positions:
            raise InputError(
                f"{tokenizer}/tokenizer_config.json: model_max_length is {_or_missing(tower.length)}, and {encoder} has {positions} "
                f'positions; write "model_max_length": {positions} into it'
            )
    elif tower.tokenizer.pad_token_id is None:
        raise InputError(f"{tokenizer} names no padding token, and captions are padded to one length; write pad_token into it")
    if (largest := max(tower.tokenizer.get_vocab().values())) >= vocabulary:
        raise InputError(f"{tokenizer} makes token ids up to {largest}, and {encoder} knows {vocabulary}: they are not of one model")


def _or_missing(length: int) -> str:
    return "missing" if length >= _NO_LENGTH else str(length)
