"""What must be true of the toy's models before the method's claims are tried on them; fixed before any student was trained.

A claim like "two guided steps are preferred to the teacher's fifty" can show only where a reward has something to give. It is not enough
that each model is right: these gates ask too whether the expert's preferences are shared by the judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

NUM_RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gate:
    """A figure that must lie in [low, high]."""

    name: str
    figure: float
    low: float = -float("inf")
    high: float = float("inf")

    @property
    def met(self) -> bool:
        return self.low <= self.figure <= self.high


# Every gate's figure and its bounds, by name.
BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "codec: neat pictures read right": (0.99, 1.0),
    "codec: neat and flawed pictures told apart": (0.95, 1.0),
    "teacher in 50 steps: right": (0.60, 0.85),
    "teacher in 50 steps: mean of the judge's scores": (0.5, 0.8),
    "judge: neat real pictures above the teacher's": (0.15, 1.0),
    "expert: pairs of teacher's pictures ordered as raters do": (0.80, 1.0),
    "judge: accepts what matches and is neat, refuses the rest": (0.93, 1.0),
    "expert and judge: correlation within a caption": (0.5, 0.9),
    "best of four by the expert wins by the judge: lower bound": (0.55, 1.0),
    "plain LCM in 2 steps against the teacher by the judge: upper bound": (0.0, 0.5),
    "plain LCM in 4 steps against the teacher by the judge: upper bound": (0.0, 0.5),
    "proxy: captions retrieved after pretraining": (0.85, 1.0),
    "proxy: share of that kept by tuning": (0.8, 1.0),
}


def gate(name: str, figure: float) -> Gate:
    """A measured figure with the bounds of its gate. Raises KeyError for a gate that is none."""
    return Gate(name, figure, *BOUNDS[name])


def correlation_within(expert: Tensor, judge: Tensor) -> float:
    """Pearson's correlation of two scorers (C, n) over n pictures of each of C captions, each caption's mean taken off."""
    first, second = (scores.double() - scores.double().mean(1, keepdim=True) for scores in (expert, judge))
    return float((first * second).sum() / (first.square().sum() * second.square().sum()).sqrt())


def best_of(expert: Tensor, judge: Tensor, *, seed: int = 0) -> Interval:
    """How often, by the judge, the expert's best of n pictures of a caption beats one of the others; scores (C, n)."""
    best = expert.argmax(1)
    chosen = judge.gather(1, best[:, None])
    others = torch.ones_like(judge, dtype=torch.bool).scatter(1, best[:, None], False)
    wins = ((chosen > judge).double() + 0.5 * (chosen == judge).double())[others].view(len(judge), -1)
    return by_caption(wins.mean(1), seed=seed)


def wins(ours: Tensor, theirs: Tensor, captions: Sequence[str], *, seed: int = 0) -> Interval:
    """How often our picture beats theirs of the same caption by scores (N,), a tie being half; captions are resampled."""
    won = (ours > theirs).double() + 0.5 * (ours == theirs).double()
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(captions):
        rows.setdefault(text, []).append(row)
    return by_caption(torch.stack([won[group].mean() for group in rows.values()]), seed=seed)


def by_caption(values: Tensor, *, seed: int) -> Interval:
    """The mean of one value for each caption (C,), with its percentile interval over resampled captions (Efron 1979)."""
    draws = torch.Generator().manual_seed(seed)
    means = values[torch.randint(len(values), (NUM_RESAMPLES, len(values)), generator=draws)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(values.mean().item(), low, high)


def balanced_accuracy(neat: Tensor, flawed: Tensor, cut: float) -> float:
    """How well a cut tells neat pictures from flawed ones by their untidiness."""
    return ((neat < cut).double().mean() + (flawed >= cut).double().mean()).item() / 2
