"""Scores by the groups that prompts belong to: a style, a category, a challenge, a task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.measurement import REAL, Measurement, Sampler
from rglcd.evaluation.paired_statistics import mean_by_caption

HPSV2_BLOCK: Final = 80
HPSV2_IMAGES: Final = 800
"""HPSv2's protocol: 800 images a style, in ten blocks of 80 (hpsv2/evaluation.py: ``range(0, 800, 80)``)."""


@dataclass(frozen=True)
class GroupScore:
    """One scorer's mean over the images of one group. ``block_deviation`` is HPSv2's: see :func:`block_deviation`."""

    mean: Estimate
    block_deviation: float | None


@dataclass(frozen=True)
class Grouping:
    """One way to group the images: ``num_images`` by group, and every sampler's scores by scorer and group, where there are any.

    The real images are not in it: their captions are their own.
    """

    name: str
    num_images: Mapping[str, int]
    scores: Mapping[Sampler, Mapping[str, Mapping[str, GroupScore]]]

    def mean_of_groups(self, sampler: Sampler, scorer: str) -> float:
        """The mean of the groups' means: each group counts as much, however many images it has."""
        means = [score.mean.value for score in self.scores[sampler][scorer].values()]
        return math.fsum(means) / len(means)


def grouped(measurements: Sequence[Measurement], labels: Sequence[Mapping[str, str]], *, seed: int) -> tuple[Grouping, ...]:
    """The groupings of images whose groups are ``labels``, one mapping (grouping -> group) an image; none where these are empty."""
    names = dict.fromkeys(name for label in labels for name in label)
    return tuple(_grouping(name, measurements, [label.get(name) for label in labels], seed=seed) for name in names)


def _grouping(name: str, measurements: Sequence[Measurement], labels: Sequence[str | None], *, seed: int) -> Grouping:
    rows: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        if label is not None:
            rows.setdefault(label, []).append(number)
    scores = {m.sampler: _by_group(m, rows, seed=seed, is_style=name == "style") for m in measurements if m.sampler.who != REAL}
    return Grouping(name, {group: len(numbers) for group, numbers in rows.items()}, scores)


def _by_group(
    measurement: Measurement, rows: Mapping[str, Sequence[int]], *, seed: int, is_style: bool
) -> dict[str, dict[str, GroupScore]]:
    found: dict[str, dict[str, GroupScore]] = {}
    for scorer, values in measurement.scores.items():
        every = torch.tensor(values, dtype=torch.float64)
        scored = {group: [number for number in numbers if not every[number].isnan()] for group, numbers in rows.items()}
        found[scorer] = {
            group: GroupScore(
                mean_by_caption(every[numbers], [measurement.captions[number] for number in numbers], seed=seed),
                block_deviation(every[numbers]) if is_style else None,
            )
            for group, numbers in scored.items()
            if numbers
        }
    return {scorer: groups for scorer, groups in found.items() if groups}


def block_deviation(values: Tensor) -> float | None:
    """The spread that HPSv2 prints beside a style's mean: the population standard deviation of the means of ten blocks of 80.

    ``values`` (800,) are in the order of the published prompts, one image each; None for another number of images, which is not
    the protocol.
    """
    if len(values) != HPSV2_IMAGES:
        return None
    return values.view(-1, HPSV2_BLOCK).mean(dim=1).std(correction=0).item()
