"""The teacher's text encoder, frozen: captions to token ids, token ids to embeddings.

Shapes: B batch, L token positions, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from rglcd.core.condition import Condition
from rglcd.models.loading import load_tokenizer, load_weights


class TextEncoder:
    """A ``CLIPTextModel`` and its tokenizer."""

    def __init__(self, model: CLIPTextModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "TextEncoder":
        """Text encoder and tokenizer of the diffusers pipeline in ``folder``."""
        model = load_weights(CLIPTextModel, folder / "text_encoder", dtype=dtype).to(device)
        return cls(model, load_tokenizer(folder / "tokenizer"))

    def tokenise(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, L), padded and cut to the model's length, on the CPU."""
        length = self.tokenizer.model_max_length
        batch = self.tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return torch.as_tensor(batch["input_ids"], dtype=torch.int64)

    def null_ids(self) -> Tensor:
        """Ids (1, L) of the empty caption: the unconditional half of guidance."""
        return self.tokenise([""])

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Condition:
        """Embeddings (B, L, D) of ids (B, L)."""
        return Condition(self.model(ids.to(self.model.device)).last_hidden_state)
