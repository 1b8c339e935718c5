"""What a training step works on, and what is left of it: some samples or the whole batch.

Shapes: B batch (a process's share), m micro-batch, b <= m rewarded samples, (C, h, w) latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.distillation import Draws
from rglcd.training.reward_guidance import Scores, Texts


@dataclass(frozen=True)
class Batch:
    """What one step trains on: clean latents, conditions, scorers' text features and scores of the real images, and the draws."""

    z0: Tensor
    cond: Condition
    texts: Texts
    scores: Scores
    draws: Draws

    def __getitem__(self, rows: slice) -> "Batch":
        """Some samples."""
        texts, scores = ({name: values[rows] for name, values in column.items()} for column in (self.texts, self.scores))
        return Batch(self.z0[rows], self.cond[rows], texts, scores, self.draws[rows])


@dataclass(frozen=True)
class Outcome:
    """What is left of m samples once their gradient is taken, without a graph.

    Predictions and targets (m, C, h, w), distances (m,); of the b rewarded ones the rewards (b,) and their share of the pull (b,).
    """

    z0_hat: Tensor
    target: Tensor
    distance: Tensor
    reward: Tensor | None = None
    reward_share: Tensor | None = None


def figures_of(outcomes: Sequence[Outcome]) -> dict[str, list[Tensor]]:
    """By name, the figures of each micro-batch's samples, where there are any; over ranks and micro-batches the mean is the batch's."""
    columns = {name: [getattr(outcome, name) for outcome in outcomes] for name in ("distance", "reward", "reward_share")}
    return {name: column for name, column in columns.items() if column[0] is not None}
