"""The teacher's frozen text encoders: captions to token ids, token ids to the UNet's conditioning.

Shapes: B batch, L token positions, D width, P pooled width. SDXL has two encoders: their ids lie side by side in L, their
embeddings in D.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.loading import load_tokenizer, load_weights, read_json

_NO_LENGTH = 10**9
"""transformers gives a tokenizer that declares no length 10**30."""


@dataclass(frozen=True)
class TextTower:
    """One encoder and its tokenizer."""

    model: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase

    @property
    def length(self) -> int:
        """Token positions, of every caption."""
        return int(self.tokenizer.model_max_length)


class TextEncoder:
    """The text half of a Stable Diffusion pipeline: one tower (SD 1 and 2), or SDXL's two.

    ``zero_null``: the unconditional input is zeros, as SDXL was trained (``force_zeros_for_empty_prompt``), not the empty caption.
    """

    def __init__(self, towers: Sequence[TextTower], *, zero_null: bool = False) -> None:
        self.towers = tuple(towers)
        self._zero_null = zero_null
        for tower in self.towers:
            tower.model.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "TextEncoder":
        """Text encoders and tokenizers of the diffusers pipeline in ``folder``."""
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        towers = [
            TextTower(load_weights(kind, folder / encoder, dtype=dtype).to(device), load_tokenizer(folder / tokenizer))
            for kind, (encoder, tokenizer) in zip(kinds, text_parts(folder), strict=False)
        ]
        for tower, (encoder, tokenizer) in zip(towers, text_parts(folder), strict=True):
            _require_fit(tower, encoder=folder / encoder, tokenizer=folder / tokenizer)
        return cls(towers, zero_null=is_xl(folder) and bool(_index(folder).get("force_zeros_for_empty_prompt", True)))

    @property
    def is_xl(self) -> bool:
        """Whether the networks are SDXL's, which read a pooled caption and the picture's sizes too."""
        return len(self.towers) > 1

    def tokenise(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, L), padded and cut to each tower's length, on the CPU."""
        return torch.cat([_ids(tower, captions) for tower in self.towers], dim=1)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Condition:
        """The condition of ids (B, L); SDXL's UNet also needs the image's sizes (:meth:`Condition.with_time_ids`)."""
        if not self.is_xl:
            (tower,) = self.towers
            return Condition(tower.model(ids.to(tower.model.device)).last_hidden_state)
        rows = ids.split([tower.length for tower in self.towers], dim=1)
        outputs = [
            tower.model(part.to(tower.model.device), output_hidden_states=True) for tower, part in zip(self.towers, rows, strict=True)
        ]
        # The last layer but one of both, and the projected caption of the second: SDXL, arXiv 2307.01952, Sec. 2.1
        return Condition(torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds)

    def null(self) -> Condition:
        """The unconditional input of classifier-free guidance (1 row)."""
        empty = self.encode(self.tokenise([""]))
        if not self._zero_null:
            return empty
        assert empty.pooled is not None, "only SDXL's pipelines ask for zeros"
        return Condition(torch.zeros_like(empty.embeddings), torch.zeros_like(empty.pooled))

    def drawing_sizes(self, resolution: int) -> Tensor | None:
        """Time ids (1, 6) of a square picture to draw, whole and of its own size, as in diffusers' pipeline; None for SD 1, 2."""
        return torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]]) if self.is_xl else None


def is_xl(folder: Path) -> bool:
    """Whether the diffusers pipeline in ``folder`` is SDXL's, by the parts that its index names."""
    return "text_encoder_2" in _index(folder)


def text_parts(folder: Path) -> tuple[tuple[str, str], ...]:
    """Sub-folders of the text encoders and tokenizers of the diffusers pipeline in ``folder``, in their order."""
    first = ("text_encoder", "tokenizer")
    return (first, ("text_encoder_2", "tokenizer_2")) if is_xl(folder) else (first,)


def _require_fit(tower: TextTower, *, encoder: Path, tokenizer: Path) -> None:
    """Raise :class:`InputError` for a tokenizer that makes what the encoder cannot read. diffusers' pipelines fail there too."""
    positions, vocabulary = int(tower.model.config.max_position_embeddings), int(tower.model.config.vocab_size)
    if not 1 <= tower.tokenizer.model_max_length <= positions:
        raise InputError(
            f"{tokenizer}/tokenizer_config.json: model_max_length is {_or_missing(tower.length)}, and {encoder} has {positions} "
            f'positions; write "model_max_length": {positions} into it'
        )
    if (largest := max(tower.tokenizer.get_vocab().values())) >= vocabulary:
        raise InputError(f"{tokenizer} makes token ids up to {largest}, and {encoder} knows {vocabulary}: they are not of one model")


def _or_missing(length: int) -> str:
    return "missing" if length >= _NO_LENGTH else str(length)


def _index(folder: Path) -> dict[str, object]:
    return read_json(folder / "model_index.json")


def _ids(tower: TextTower, captions: Sequence[str]) -> Tensor:
    batch = tower.tokenizer(list(captions), padding="max_length", max_length=tower.length, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch["input_ids"], dtype=torch.int64)
