"""The teacher's frozen text encoders: captions to token ids, token ids to the network's conditioning.

Shapes: B batch, L token positions, D width, P pooled width. Several encoders' ids lie side by side in L.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.models.families import STABLE_DIFFUSION, family_of
from rglcd.models.families.protocol import Family
from rglcd.models.families.stable_diffusion import is_xl
from rglcd.models.loading import read_json
from rglcd.models.text_towers import TextPart, TextTower, load_tower


class TextEncoder:
    """The text half of a pipeline.

    ``zero_null``: the unconditional input is zeros, as SDXL was trained (``force_zeros_for_empty_prompt``), not the empty caption.
    """

    def __init__(self, towers: Sequence[TextTower], *, zero_null: bool = False, family: Family = STABLE_DIFFUSION) -> None:
        self.towers = tuple(towers)
        self.family = family
        self._zero_null = zero_null
        for tower in self.towers:
            tower.model.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "TextEncoder":
        """Text encoders and tokenizers of the diffusers pipeline in ``folder``."""
        family = family_of(folder)
        towers = [load_tower(part, folder, dtype=dtype, device=device) for part in family.text_parts(folder)]
        zero_null = family is STABLE_DIFFUSION and is_xl(folder)
        zero_null = zero_null and bool(read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True))
        return cls(towers, zero_null=zero_null, family=family)

    @property
    def is_xl(self) -> bool:
        """Whether the networks are SDXL's, which read the picture's sizes too."""
        return self.family is STABLE_DIFFUSION and len(self.towers) > 1

    def tokenise(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, L), padded and cut to each tower's length, on the CPU."""
        return self.family.tokenise(self.towers, captions)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Condition:
        """The condition of ids (B, L); SDXL's UNet also needs the image's sizes (:meth:`Condition.with_time_ids`)."""
        return self.family.encode(self.towers, ids)

    def masked(self, caption: Condition, ids: Tensor) -> Condition:
        """``caption``, which was stored without its mask, with that of its ids (B, L), where the family has one."""
        mask = self.family.mask(self.towers, ids)
        return caption if mask is None else replace(caption, mask=mask.to(caption.embeddings.device))

    @torch.no_grad()
    def null(self) -> Condition:
        """The unconditional input of classifier-free guidance (1 row)."""
        empty = self.family.null(self.towers)
        if not self._zero_null:
            return empty
        assert empty.pooled is not None, "only SDXL's pipelines ask for zeros"
        return Condition(torch.zeros_like(empty.embeddings), torch.zeros_like(empty.pooled))

    def drawing_sizes(self, resolution: int) -> Tensor | None:
        """Time ids (1, 6) of a square picture to draw, whole and of its own size, as in diffusers' pipeline; None for all but SDXL."""
        return torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]]) if self.is_xl else None


def text_parts(folder: Path) -> tuple[TextPart, ...]:
    """Text encoders and tokenizers of the diffusers pipeline in ``folder``, in their order."""
    return family_of(folder).text_parts(folder)


__all__ = ["TextEncoder", "TextTower", "text_parts"]
