"""All measurements side by side: means with intervals, and win rates against the teacher and the plain arm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rglcd.evaluation.measurement import REAL, TEACHER, Measurement, Sampler
from rglcd.evaluation.statistics import Estimate, bootstrap_mean, win_rate
from rglcd.evaluation.wording import PLAIN_ARM


@dataclass(frozen=True)
class ScoreSummary:
    """One scorer's mean; the share of images with its greatest possible score; win rates by opponent, image by image."""

    mean: Estimate
    full_marks: float
    win_rates: dict[str, Estimate]


@dataclass(frozen=True)
class Summary:
    """The measurement of one sampler in numbers, with intervals."""

    sampler: Sampler
    scores: dict[str, ScoreSummary]
    fid: float | None
    fid_to_teacher: float | None
    diversity: float | None
    high_frequency: float
    saturation: float
    seconds_per_image: float | None


@dataclass(frozen=True)
class Comparison:
    """All samplers side by side. ``trained_on`` is the scorer that guided the arms (None: no reward did)."""

    summaries: tuple[Summary, ...]
    num_images: int
    trained_on: str | None

    @property
    def teacher(self) -> Summary:
        (found,) = (summary for summary in self.summaries if summary.sampler.who == TEACHER)
        return found

    @property
    def arms(self) -> list[str]:
        """In the order they were measured; the guided one, if any, last."""
        arms = [summary.sampler.who for summary in self.summaries if summary.sampler.who not in (TEACHER, REAL)]
        return sorted(dict.fromkeys(arms), key=lambda arm: arm != PLAIN_ARM)

    @property
    def scorers(self) -> list[str]:
        return list(self.teacher.scores)

    @property
    def judges(self) -> list[str]:
        """The scorers that no student was trained on; all of them where there is no other."""
        return [name for name in self.scorers if name != self.trained_on] or self.scorers

    @property
    def has_only_the_training_reward(self) -> bool:
        """Whether no scorer is independent of the training."""
        return self.judges == self.scorers and self.trained_on in self.scorers

    def steps_of(self, arm: str) -> list[Summary]:
        """The summaries of ``arm``, fewest steps first."""
        return sorted((s for s in self.summaries if s.sampler.who == arm), key=lambda s: s.sampler.num_steps)

    @property
    def focus(self) -> Summary:
        """What the verdict is about: the guided arm at two steps, or as near as there is."""
        return min(self.steps_of(self.arms[-1]), key=lambda summary: abs(summary.sampler.num_steps - 2))


def compare(measurements: Sequence[Measurement], *, seed: int, trained_on: str | None) -> Comparison:
    """Means with bootstrap intervals, and win rates against the teacher and against the plain arm at equal steps."""
    by_sampler = {measurement.sampler: measurement for measurement in measurements}
    (teacher,) = (measurement for measurement in measurements if measurement.sampler.who == TEACHER)
    summaries = []
    for measurement in measurements:
        sampler = measurement.sampler
        opponents = {} if sampler.who in (TEACHER, REAL) else {TEACHER: teacher}
        plain = by_sampler.get(Sampler(PLAIN_ARM, sampler.num_steps))
        if opponents and plain is not None and sampler.who != PLAIN_ARM:
            opponents[PLAIN_ARM] = plain
        summaries.append(_summary(measurement, opponents, seed=seed))
    return Comparison(tuple(summaries), len(teacher.saturation), trained_on)


def _summary(measurement: Measurement, opponents: Mapping[str, Measurement], *, seed: int) -> Summary:
    scores = {}
    for name, values in measurement.scores.items():
        ours = torch.tensor(values, dtype=torch.float64)
        wins = {who: win_rate(ours, torch.tensor(other.scores[name], dtype=torch.float64)) for who, other in opponents.items()}
        scores[name] = ScoreSummary(bootstrap_mean(ours, seed=seed), measurement.full_marks[name], wins)
    return Summary(
        sampler=measurement.sampler,
        scores=scores,
        fid=measurement.fid,
        fid_to_teacher=measurement.fid_to_teacher,
        diversity=measurement.diversity,
        high_frequency=_mean(measurement.high_frequency),
        saturation=_mean(measurement.saturation),
        seconds_per_image=measurement.seconds_per_image,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
