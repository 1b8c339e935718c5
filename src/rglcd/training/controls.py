"""The studies' controls: a run that differs from the method in one thing which should matter. None is part of the method.

    labels from the scores of others      what does the proxy learn from the expert?
    a proxy with random weights           what is its pretraining worth?
    a proxy of which the last blocks learn    how much of it must be tuned?

Shapes: K candidates, B samples of this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from rglcd import recipe
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.training.distributed import World
from rglcd.training.draws import generator_for

LabelScores = Callable[[Tensor, int], Tensor]
"""(scores (K, B), training step) -> the scores (K, B) that the labels are made of."""


def label_scores(pairing: recipe.Pairing, *, seed: int, world: World) -> LabelScores | None:
    """Whose scores the images are labelled with; None where these are their own, as in the method."""
    match pairing:
        case "own":
            return None
        case "other_captions" | "other_images":
            return ScoresOfOthers(pairing, seed, world)
        case _:
            assert_never(pairing)


@dataclass(frozen=True)
class ScoresOfOthers:
    """This rank's columns of the scores, after those of the whole batch are shuffled."""

    pairing: recipe.Pairing
    seed: int
    world: World

    def __call__(self, scores: Tensor, step: int) -> Tensor:
        everybody = self.world.gather(scores.T).T
        generator = generator_for(self.seed, step, "pairing")
        shuffled = shuffle(everybody, self.pairing, generator=generator, place=self.world.to_device)
        return shuffled[:, self.world.rows(shuffled.shape[1])]


def shuffle(
    scores: Tensor, pairing: recipe.Pairing, *, generator: torch.Generator, place: Callable[[Tensor], Tensor] = lambda order: order
) -> Tensor:
    """Scores (K, B) as they are, with captions permuted (whole columns), or fully shuffled; ``place`` puts the order on their device.

    With other captions' columns a proxy can still learn that real images win, and nothing of what a caption says; with
    other images' scores it can learn nothing.
    """
    match pairing:
        case "own":
            return scores
        case "other_captions":
            return scores[:, place(torch.randperm(scores.shape[1], generator=generator))]
        case "other_images":
            order = place(torch.randperm(scores.numel(), generator=generator))
            return scores.flatten()[order].view_as(scores)
        case _:
            assert_never(pairing)


def start_of(pretrained: LatentRewardModel, start: recipe.ProxyStart, *, seed: int) -> LatentRewardModel:
    """The proxy at the start of the run: as pretraining left it, or with random weights of the same shape."""
    match start:
        case "pretrained":
            return pretrained
        case "random":
            return LatentRewardModel.at_random(pretrained.shape, seed=seed)
        case _:
            assert_never(start)


def restrict_training(proxy: LatentRewardModel, trains: recipe.Trains) -> None:
    """Leave to training what ``trains`` says of the proxy; the rest keeps its weights."""
    match trains:
        case recipe.WholeProxy():
            pass
        case recipe.LastBlocks():
            proxy.train_last(trains.num_blocks, text=trains.text == "learns")
        case _:
            assert_never(trains)
