"""What each choice of :mod:`rglcd.recipe` computes. Every union is matched to its end, so that a new member cannot pass for another.

Shapes: N steps of a grid, (N + 1,) rising noise levels at their ends; K candidates, B samples.
"""

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from rglcd import recipe
from rglcd.core import distances
from rglcd.core.preference import hard_preferences
from rglcd.core.timesteps import doubling_curriculum, even_weights, inverse_gap_weights, lognormal_weights, mixture, uniform_weights
from rglcd.errors import InputError
from rglcd.rewards.protocol import Reward


def distance_function(chosen: recipe.Distance) -> distances.Distance:
    """The distance (B,) between the student's prediction and its target."""
    match chosen:
        case recipe.Huber(c=c):
            return lambda x, y: distances.huber(x, y, c=c)
        case recipe.SquaredL2():
            return distances.squared_l2
        case recipe.PseudoHuber():
            return lambda x, y: distances.pseudo_huber(x, y, c=chosen.c)
        case recipe.Cauchy():
            return lambda x, y: distances.cauchy(x, y, c=chosen.c)
        case _:
            assert_never(chosen)


def step_probabilities(chosen: recipe.Timesteps, levels: Tensor) -> Tensor:
    """Probabilities (N,) with which the steps of a grid are drawn."""
    match chosen:
        case recipe.UniformTimesteps():
            return uniform_weights(levels, span=chosen.span)
        case recipe.LognormalTimesteps():
            return mixture(_lognormal(chosen, levels), uniform_share=chosen.uniform_share)
        case _:
            assert_never(chosen)


def _lognormal(chosen: recipe.LognormalTimesteps, levels: Tensor) -> Tensor:
    weights = lognormal_weights(levels, p_mean=chosen.p_mean, p_std=chosen.p_std)
    # Where operations are counted, levels have no values to look at.
    if not weights.is_meta and not bool(weights.isfinite().all()):
        low, high = levels.log().aminmax()
        raise InputError(
            f"timesteps of kind lognormal with p_mean {chosen.p_mean:g} and p_std {chosen.p_std:g} draw none of the teacher's "
            f"noise levels, whose logarithms lie between {float(low):.2f} and {float(high):.2f}"
        )
    return weights


def loss_weights(chosen: recipe.Weighting, levels: Tensor, probabilities: Tensor) -> Tensor:
    """Weights (N,) of the loss on the steps of a grid, which are drawn with ``probabilities`` (N,)."""
    match chosen:
        case "even":
            return even_weights(levels, probabilities)
        case "inverse_gap":
            return inverse_gap_weights(levels, probabilities)
        case _:
            assert_never(chosen)


def num_grid_steps(chosen: recipe.Grid, step: int, *, total_steps: int, num_ddim_steps: int) -> int:
    """How many steps the solver's grid has at training step ``step``."""
    match chosen:
        case recipe.ConstantGrid():
            return num_ddim_steps
        case recipe.DoublingGrid():
            return doubling_curriculum(step, total_steps=total_steps, s0=chosen.start, s1=chosen.end)
        case _:
            assert_never(chosen)


def average_decay(chosen: recipe.Target) -> float | None:
    """The decay of the student's moving average; None where no average is kept."""
    match chosen:
        case recipe.EmaTarget():
            return chosen.decay
        case recipe.StopGradientTarget():
            return chosen.evaluation_decay
        case _:
            assert_never(chosen)


def label_function(chosen: recipe.Labels, expert: Reward) -> Callable[[Tensor], Tensor]:
    """Expert logits (K, B) of the expert's scores (K, B). Any logit scale is read now: on a GPU a step would wait for it."""
    match chosen:
        case recipe.SoftLabels():
            scale = label_scale(chosen, expert)
            return lambda scores: scale * scores
        case recipe.HardLabels():
            return hard_preferences
        case _:
            assert_never(chosen)


def label_scale(chosen: recipe.Labels, expert: Reward) -> float:
    """What an expert's score is worth in the proxy's logits: its own temperature, where labels have none."""
    match chosen:
        case recipe.SoftLabels():
            return expert.logit_scale if chosen.logit_scale is None else chosen.logit_scale
        case recipe.HardLabels():
            return expert.logit_scale
        case _:
            assert_never(chosen)


def ties_count(chosen: recipe.Ties) -> bool:
    """Whether the proxy is taught that the expert is undecided, where it is."""
    match chosen:
        case "half":
            return True
        case "left_out":
            return False
        case _:
            assert_never(chosen)


def dtype_of(chosen: recipe.Precision) -> torch.dtype:
    """torch's name of a precision."""
    match chosen:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case _:
            assert_never(chosen)
