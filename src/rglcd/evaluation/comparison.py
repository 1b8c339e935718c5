"""All measurements side by side: means with intervals, and win rates against the teacher and the plain arm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rglcd.evaluation.distances import Distances, refuse_other_basis
from rglcd.evaluation.groups import Grouping, grouped
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.kernel_distance import KernelSample, kernel_sample
from rglcd.evaluation.measurement import REAL, TEACHER, Measurement, Sampler
from rglcd.evaluation.paired_statistics import mean_by_caption, share_by_caption, win_rate_by_caption
from rglcd.evaluation.wording import PLAIN_ARM, from_two, in_report_order


@dataclass(frozen=True)
class ScoreSummary:
    """One scorer's mean; the share of images with its greatest possible score; win rates by opponent, image by image.

    All over the ``num_images`` that it has a score for, which are of ``num_prompts``.
    """

    mean: Estimate
    full_marks: float
    win_rates: dict[str, Estimate]
    num_images: int
    num_prompts: int


@dataclass(frozen=True)
class Summary:
    """The measurement of one sampler in numbers, with intervals.

    ``scores`` are those of the scorers that have any for its captions. ``unasked_text`` is the share of images with text that their
    captions do not quote, ``unasked_beyond_teacher`` how much greater it is than the teacher's, image by image; None where nobody read.
    """

    sampler: Sampler
    scores: dict[str, ScoreSummary]
    distances: Distances
    basis: Mapping[str, str]
    frechet_to_teacher: float | None
    diversity: float | None
    high_frequency: float
    saturation: float
    seconds_per_image: float | None
    rate_seconds_per_image: float
    total_seconds: float
    unasked_text: Estimate | None
    unasked_beyond_teacher: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """All samplers side by side, ``num_images`` of each for ``num_prompts``. ``trained_on`` is the scorer that guided the arms (None: no
    reward did).

    ``akin`` are the scorers that have weights or parts in common with it. ``num_features`` is the width of the features that the
    Fréchet distance compares and ``num_reference`` the number of real images (0: not known). ``groupings`` are the scores by groups
    of prompts, where these have groups. ``kernel`` is what kernel distances are measured on, None where there are none.
    """

    summaries: tuple[Summary, ...]
    num_images: int
    trained_on: str | None
    akin: frozenset[str] = frozenset()
    num_features: int = 0
    num_reference: int = 0
    groupings: tuple[Grouping, ...] = ()
    kernel: KernelSample | None = None
    num_prompts: int = 0

    @property
    def frechet_name(self) -> str | None:
        """What the Fréchet distance of plots and headlines is called: ``frechet``, ``fid`` or ``fd_dinov2``; None if there is none."""
        return next(iter(self.teacher.distances.frechet), None)

    def frechet_of(self, summary: Summary) -> float | None:
        """That distance of ``summary``; None for the real images."""
        return None if self.frechet_name is None else summary.distances.frechet.get(self.frechet_name)

    @property
    def teacher(self) -> Summary:
        """The first: in the number of steps that students are compared with."""
        return next(summary for summary in self.summaries if summary.sampler.who == TEACHER)

    @property
    def arms(self) -> list[str]:
        """The one that the report is about last."""
        return in_report_order(summary.sampler.who for summary in self.summaries if summary.sampler.who not in (TEACHER, REAL))

    @property
    def scorers(self) -> list[str]:
        return list(self.teacher.scores)

    @property
    def judges(self) -> list[str]:
        """The scorers that share nothing with what a student was trained on, all of them where there is no other; and of these the ones
        that have a score for every picture, if any has."""
        held_out = [name for name in self.scorers if name not in self._seen_in_training] or self.scorers
        return [name for name in held_out if self.teacher.scores[name].num_images == self.num_images] or held_out

    @property
    def has_only_the_training_reward(self) -> bool:
        """Whether no scorer is independent of the training."""
        return bool(self._seen_in_training) and self._seen_in_training.issuperset(self.scorers)

    @property
    def _seen_in_training(self) -> frozenset[str]:
        return self.akin if self.trained_on is None else self.akin | {self.trained_on}

    @property
    def frechet_has_too_few_images(self) -> bool:
        """Whether a covariance is singular, so the distance means nothing: no more images than features leave directions without spread."""
        counts = [count for count in (self.num_images, self.num_reference) if count]
        return self.num_features > 0 and min(counts) <= self.num_features

    def steps_of(self, arm: str) -> list[Summary]:
        """The summaries of ``arm``, fewest steps first."""
        return sorted((s for s in self.summaries if s.sampler.who == arm), key=lambda s: s.sampler.num_steps)

    @property
    def focus(self) -> Summary:
        """What the verdict is about: the guided arm at two steps, or as near as there is."""
        return min(self.steps_of(self.arms[-1]), key=lambda summary: from_two(summary.sampler.num_steps))


def compare(
    measurements: Sequence[Measurement],
    *,
    seed: int,
    trained_on: str | None,
    akin: frozenset[str] = frozenset(),
    num_features: int = 0,
    labels: Sequence[Mapping[str, str]] = (),
) -> Comparison:
    """Means, and win rates against the teacher and against the plain arm at equal steps, with intervals over captions.

    ``labels`` are each drawn image's groups, by grouping. Raises :class:`InputError` for distances that were measured differently.
    """
    for measurement in measurements:
        refuse_other_basis(measurements[0].basis, measurement.basis)
    by_sampler = {measurement.sampler: measurement for measurement in measurements}
    teacher = next(measurement for measurement in measurements if measurement.sampler.who == TEACHER)
    summaries = []
    for measurement in measurements:
        sampler = measurement.sampler
        opponents = {} if measurement is teacher or sampler.who == REAL else {TEACHER: teacher}
        plain = by_sampler.get(Sampler(PLAIN_ARM, sampler.num_steps))
        if opponents and plain is not None and sampler.who not in (PLAIN_ARM, TEACHER):
            opponents[PLAIN_ARM] = plain
        summaries.append(_summary(measurement, opponents, seed=seed))
    reference = [caption for measurement in measurements if measurement.sampler.who == REAL for caption in measurement.captions]
    groupings = grouped(measurements, labels, seed=seed)
    kernel = kernel_sample(teacher.captions, reference) if teacher.distances.kernel else None
    return Comparison(
        tuple(summaries),
        len(teacher.captions),
        trained_on,
        akin,
        num_features,
        len(reference),
        groupings,
        kernel,
        len(set(teacher.captions)),
    )


def _summary(measurement: Measurement, opponents: Mapping[str, Measurement], *, seed: int) -> Summary:
    scores = {}
    for name, values in measurement.scores.items():
        ours = torch.tensor(values, dtype=torch.float64)
        scored = ~ours.isnan()
        if not bool(scored.any()):
            continue
        captions = [caption for caption, is_scored in zip(measurement.captions, scored.tolist(), strict=True) if is_scored]
        theirs = {who: torch.tensor(other.scores[name], dtype=torch.float64) for who, other in opponents.items()}
        wins = {who: win_rate_by_caption(ours[scored], values[scored], captions, seed=seed) for who, values in theirs.items()}
        mean = mean_by_caption(ours[scored], captions, seed=seed)
        scores[name] = ScoreSummary(mean, measurement.full_marks[name], wins, len(captions), len(set(captions)))
    unasked, beyond = _unasked_text(measurement, opponents.get(TEACHER), seed=seed)
    return Summary(
        sampler=measurement.sampler,
        scores=scores,
        distances=measurement.distances,
        basis=measurement.basis,
        frechet_to_teacher=measurement.frechet_to_teacher,
        diversity=measurement.diversity,
        high_frequency=_mean(measurement.high_frequency),
        saturation=_mean(measurement.saturation),
        seconds_per_image=measurement.seconds_per_image,
        rate_seconds_per_image=measurement.rate_seconds_per_image,
        total_seconds=measurement.total_seconds,
        unasked_text=unasked,
        unasked_beyond_teacher=beyond,
    )


def _unasked_text(measurement: Measurement, teacher: Measurement | None, *, seed: int) -> tuple[Estimate | None, Estimate | None]:
    if measurement.unasked_text is None:
        return None, None
    ours, captions = torch.tensor(measurement.unasked_text, dtype=torch.float64), measurement.captions
    share = share_by_caption(ours, captions, seed=seed)
    if teacher is None or teacher.unasked_text is None:
        return share, None
    return share, mean_by_caption(ours - torch.tensor(teacher.unasked_text, dtype=torch.float64), captions, seed=seed)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
