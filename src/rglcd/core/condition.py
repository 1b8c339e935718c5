"""Conditioning inputs of the network besides z_t and t: text embeddings with their mask, pooled text, SDXL's sizes. Opaque to the core.

Shapes: B rows, L token positions, D width, P pooled width.
    embeddings (B,L,D)    pooled (B,P)    time_ids (B,6)    mask (B,L) bool
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Text `embeddings`, and what some networks add: the `pooled` caption, the `time_ids` of SDXL's micro-conditioning, a `mask`.

    The six time ids are original height and width, top and left of the crop, target height and width, in pixels
    (SDXL, arXiv 2307.01952, Sec. 2.2). The mask is true at the positions that attention may look at. What a network does not
    have is None.
    """

    embeddings: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice) -> Self:
        """Some rows."""
        return self.each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same on `device`, the caption in `dtype`; sizes and mask keep theirs, for bfloat16 is not exact above 256."""
        time_ids, mask = (None if kept is None else kept.to(device) for kept in (self.time_ids, self.mask))
        moved = self.each(lambda tensor: tensor.to(device, dtype))
        return replace(moved, time_ids=time_ids, mask=mask)

    def with_caption_of(self, null: "Condition", rows: Tensor | None = None) -> Self:
        """`null`'s caption (1 row or B) in each row, or in those that `rows` (B,) is true for; the sizes stay.

        Time ids describe the picture, not the caption: guidance compares two captions of one picture, as diffusers'
        pipelines and its SDXL distillation scripts do.
        """

        def replaced(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            other = theirs.to(mine).expand_as(mine)
            return other if rows is None else torch.where(rows.view(-1, *(1,) * (mine.ndim - 1)), other, mine)

        embeddings = replaced(self.embeddings, null.embeddings)
        assert embeddings is not None
        return replace(self, embeddings=embeddings, pooled=replaced(self.pooled, null.pooled), mask=replaced(self.mask, null.mask))

    def with_time_ids(self, time_ids: Tensor | None) -> Self:
        """The same captions with other sizes; `time_ids` (B,6), or (1,6) for every row."""
        ids = None if time_ids is None else time_ids.to(self.embeddings.device).expand(len(self), -1)
        return replace(self, time_ids=ids)

    @staticmethod
    def joined(parts: "Sequence[Condition]") -> "Condition":
        """The rows of all `parts`, which have the same fields."""
        return Condition(
            torch.cat([part.embeddings for part in parts]),
            _joined([part.pooled for part in parts]),
            _joined([part.time_ids for part in parts]),
            _joined([part.mask for part in parts]),
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The condition with `change` applied to each tensor that it has."""
        changed = (None if tensor is None else change(tensor) for tensor in (self.pooled, self.time_ids, self.mask))
        return type(self)(change(self.embeddings), *changed)


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    assert len(present) in (0, len(tensors)), "conditions of one kind of network"
    return torch.cat(present) if present else None
