"""The tables of the report as plain data: every number of every sampler, and scores by groups of prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

from rglcd.evaluation.comparison import Comparison, Summary
from rglcd.evaluation.distance_names import LABELS
from rglcd.evaluation.groups import Grouping, GroupScore
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.measurement import REAL, TEACHER
from rglcd.evaluation.wording import css_class, label_of


@dataclass(frozen=True)
class ScorerColumn:
    """A scorer in the table. ``is_akin``: it has weights or parts in common with the training reward.

    ``has_full_marks``: some image has its greatest possible score, so a column says how many have. ``num_images``: that it has a score
    for, None if it has one for all.
    """

    name: str
    is_training_reward: bool
    is_akin: bool
    is_judge: bool
    has_full_marks: bool
    num_images: int | None


@dataclass(frozen=True)
class DistanceColumn:
    """A distance to the real images: its name in ``metrics.json``, and as the page writes it."""

    name: str
    label: str


@dataclass(frozen=True)
class TableRow:
    """One sampler in the table; ``is_first`` of its model, ``is_focus`` if the verdict is about it."""

    label: str
    style: str
    num_steps: int
    is_first: bool
    is_focus: bool
    wins: Mapping[str, Estimate]
    summary: Summary


@dataclass(frozen=True)
class SamplerTable:
    """Every number: a row for each sampler, columns for each scorer and each distance to the real images.

    ``has_unasked_text``: pictures were read for text that nobody asked for.
    """

    scorers: tuple[ScorerColumn, ...]
    rows: tuple[TableRow, ...]
    frechet: tuple[DistanceColumn, ...]
    kernel: tuple[DistanceColumn, ...]
    has_unasked_text: bool


@dataclass(frozen=True)
class GroupRow:
    """One sampler's scores by group."""

    label: str
    num_steps: int
    cells: tuple[GroupScore, ...]
    mean_of_groups: float


@dataclass(frozen=True)
class GroupTable:
    """One scorer's means by the groups of one grouping; ``columns`` are the groups with their numbers of images."""

    grouping: str
    scorer: str
    columns: tuple[tuple[str, int], ...]
    rows: tuple[GroupRow, ...]


def sampler_table(comparison: Comparison) -> SamplerTable:
    """Of all samplers, in the order in which they were measured."""
    columns = tuple(
        ScorerColumn(
            name=name,
            is_training_reward=name == comparison.trained_on,
            is_akin=name in comparison.akin - {comparison.trained_on},
            is_judge=name in comparison.judges,
            has_full_marks=any(summary.scores[name].full_marks > 0 for summary in comparison.summaries if name in summary.scores),
            num_images=None if (count := comparison.teacher.scores[name].num_images) == comparison.num_images else count,
        )
        for name in comparison.scorers
    )
    rows = tuple(_row(comparison, summary) for summary in comparison.summaries)
    found = comparison.teacher.distances
    frechet, kernel = (tuple(DistanceColumn(name, LABELS[name]) for name in names) for names in (found.frechet, found.kernel))
    return SamplerTable(columns, rows, frechet, kernel, comparison.teacher.unasked_text is not None)


def _row(comparison: Comparison, summary: Summary) -> TableRow:
    who = summary.sampler.who
    return TableRow(
        label=label_of(who),
        style=css_class(who),
        num_steps=summary.sampler.num_steps,
        is_first=who in (REAL, TEACHER) or comparison.steps_of(who)[0] is summary,
        is_focus=summary is comparison.focus,
        wins={name: score.win_rates[TEACHER] for name, score in summary.scores.items() if TEACHER in score.win_rates},
        summary=summary,
    )


def group_tables(comparison: Comparison) -> tuple[GroupTable, ...]:
    """One for each scorer in each grouping of the prompts, where it has scores."""
    return tuple(
        _group_table(comparison, grouping, name)
        for grouping in comparison.groupings
        for name in comparison.scorers
        if name in grouping.scores[comparison.teacher.sampler]
    )


def _group_table(comparison: Comparison, grouping: Grouping, scorer: str) -> GroupTable:
    rows = tuple(
        GroupRow(
            label=label_of(summary.sampler.who),
            num_steps=summary.sampler.num_steps,
            cells=tuple(grouping.scores[summary.sampler][scorer].values()),
            mean_of_groups=grouping.mean_of_groups(summary.sampler, scorer),
        )
        for summary in comparison.summaries
        if summary.sampler in grouping.scores
    )
    with_scores = grouping.scores[comparison.teacher.sampler][scorer]
    return GroupTable(grouping.name, scorer, tuple((group, grouping.num_images[group]) for group in with_scores), rows)
