"""Everything that the report page and its Markdown table show, as plain data: the templates draw it.

Numbers stay numbers, so that a template decides how they are written; sentences that depend on results are made here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import yaml

from rglcd.evaluation.comparison import Comparison, Summary
from rglcd.evaluation.distance_names import LABELS
from rglcd.evaluation.groups import Grouping, GroupScore
from rglcd.evaluation.look_report import LookReport, look_report
from rglcd.evaluation.looks import Record
from rglcd.evaluation.measurement import REAL, TEACHER
from rglcd.evaluation.panels import Records, quality_panels, training_panels
from rglcd.evaluation.pictures import PictureGrid, Pictures, picture_grid
from rglcd.evaluation.plots import Layout, layout
from rglcd.evaluation.statistics import Estimate
from rglcd.evaluation.verdict import findings, verdict
from rglcd.evaluation.wording import css_class, in_words, label_of


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: enough to make them again.

    ``stages`` is the lineage by stage name (``version``, ``digest``, ``sections``), in order; ``seconds`` what each took.
    ``distance`` says what the Fréchet distance compares with, and by which features; ``protocol`` what a reader must know of a
    published set of prompts (empty: nothing);
    ``num_processes`` drew side by side, each on a ``device`` of its own if that is a GPU.
    """

    stages: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    teacher: str
    guidance_scale: float
    distance: str
    prompts: str
    num_prompts: int
    protocol: str
    precision: str
    device: str
    has_gpu: bool
    num_processes: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Against:
    """A figure of the student beside the teacher's."""

    student: float
    teacher: float


@dataclass(frozen=True)
class Headlines:
    """The figures under the verdict, of ``student``: win rates over the teacher by judge, Fréchet distances, seconds an image.

    ``frechet_label`` is what the distance is called: FID by Inception's features alone.
    """

    student: str
    wins: Mapping[str, Estimate]
    frechet_label: str
    frechet: Against | None
    frechet_has_too_few_images: bool
    seconds: Against | None


@dataclass(frozen=True)
class ScorerColumn:
    """A scorer in the table. ``is_akin``: it has weights or parts in common with the training reward.

    ``has_full_marks``: some image has its greatest possible score, so a column says how many have.
    """

    name: str
    is_training_reward: bool
    is_akin: bool
    is_judge: bool
    has_full_marks: bool


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
class ScoreTable:
    """Every number: a row for each sampler, columns for each scorer and each distance to the real images."""

    scorers: tuple[ScorerColumn, ...]
    rows: tuple[TableRow, ...]
    frechet: tuple[DistanceColumn, ...]
    kernel: tuple[DistanceColumn, ...]


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


@dataclass(frozen=True)
class ThroughputRow:
    """Images a second of one process: drawn (None for the real ones) and rated; hours of all processes together."""

    label: str
    num_steps: int
    drawn: float | None
    rated: float
    hours: float


@dataclass(frozen=True)
class Throughput:
    """How fast each sampler's images were drawn and rated, and what it took; ``unit`` is what an hour is one of."""

    rows: tuple[ThroughputRow, ...]
    unit: Literal["GPU-hours", "process-hours"]

    @property
    def hours(self) -> float:
        """Of all samplers."""
        return math.fsum(row.hours for row in self.rows)


@dataclass(frozen=True)
class StageRow:
    """A stage that the student was made by, or this one, which has no digest yet: the page is part of its result."""

    name: str
    version: str
    digest: str
    seconds: float | None
    counts: str


@dataclass(frozen=True)
class Report:
    """The whole report."""

    verdict: str
    findings: tuple[str, ...]
    has_held_out_judges: bool
    teacher_steps: str
    num_images: int
    headlines: Headlines
    grid: PictureGrid
    quality: tuple[Layout, ...]
    table: ScoreTable
    groups: tuple[GroupTable, ...]
    training: tuple[Layout, ...]
    looks: LookReport | None
    throughput: Throughput
    provenance: Provenance
    stages: tuple[StageRow, ...]
    configuration: str


def report_data(
    comparison: Comparison,
    *,
    pictures: Pictures,
    provenance: Provenance,
    curves: Mapping[str, Records],
    pretraining: Records = (),
    looks: Mapping[str, Record] = MappingProxyType({}),
) -> Report:
    """The report. ``curves`` are each arm's training records, ``pretraining`` those of the latent reward model, ``looks`` what was seen."""
    return Report(
        verdict=verdict(comparison),
        findings=tuple(findings(comparison)),
        has_held_out_judges=not comparison.has_only_the_training_reward,
        teacher_steps=in_words(comparison.teacher.sampler.num_steps),
        num_images=comparison.num_images,
        headlines=_headlines(comparison),
        grid=picture_grid(pictures),
        quality=tuple(map(layout, quality_panels(comparison))),
        table=_table(comparison),
        groups=tuple(_group_table(comparison, grouping, name) for grouping in comparison.groupings for name in comparison.scorers),
        training=tuple(map(layout, training_panels(curves, pretraining))),
        looks=look_report(looks),
        throughput=_throughput(comparison, has_gpu=provenance.has_gpu),
        provenance=provenance,
        stages=_stage_rows(provenance),
        configuration=_configuration(provenance),
    )


def _headlines(comparison: Comparison) -> Headlines:
    focus, teacher = comparison.focus, comparison.teacher
    num_steps = focus.sampler.num_steps
    return Headlines(
        student=f"{label_of(focus.sampler.who)}, {in_words(num_steps)} {'step' if num_steps == 1 else 'steps'}",
        wins={judge: focus.scores[judge].win_rates[TEACHER] for judge in comparison.judges},
        frechet_label=LABELS[comparison.frechet_name or "frechet"],
        frechet=_against(comparison.frechet_of(focus), comparison.frechet_of(teacher)),
        frechet_has_too_few_images=comparison.frechet_has_too_few_images,
        seconds=_against(focus.seconds_per_image or None, teacher.seconds_per_image or None),
    )


def _against(student: float | None, teacher: float | None) -> Against | None:
    return None if student is None or teacher is None else Against(student, teacher)


def _table(comparison: Comparison) -> ScoreTable:
    columns = tuple(
        ScorerColumn(
            name=name,
            is_training_reward=name == comparison.trained_on,
            is_akin=name in comparison.akin - {comparison.trained_on},
            is_judge=name in comparison.judges,
            has_full_marks=any(summary.scores[name].full_marks > 0 for summary in comparison.summaries),
        )
        for name in comparison.scorers
    )
    rows = tuple(_row(comparison, summary) for summary in comparison.summaries)
    found = comparison.teacher.distances
    frechet, kernel = (tuple(DistanceColumn(name, LABELS[name]) for name in names) for names in (found.frechet, found.kernel))
    return ScoreTable(columns, rows, frechet, kernel)


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
    return GroupTable(grouping.name, scorer, tuple(grouping.num_images.items()), rows)


def _throughput(comparison: Comparison, *, has_gpu: bool) -> Throughput:
    rows = tuple(
        ThroughputRow(
            label=label_of(summary.sampler.who),
            num_steps=summary.sampler.num_steps,
            drawn=_rate(summary.seconds_per_image),
            rated=_rate(summary.rate_seconds_per_image) or 0.0,
            hours=summary.total_seconds / 3600,
        )
        for summary in comparison.summaries
    )
    return Throughput(rows, "GPU-hours" if has_gpu else "process-hours")


def _rate(seconds: float | None) -> float | None:
    return 1 / seconds if seconds else None


def _stage_rows(provenance: Provenance) -> tuple[StageRow, ...]:
    return tuple(
        StageRow(
            name=name,
            version=str(stage.get("version", "")),
            digest=str(stage.get("digest", "")),
            seconds=provenance.seconds.get(name),
            counts=_counts(stage),
        )
        for name, stage in provenance.stages.items()
    )


def _counts(stage: Mapping[str, Any]) -> str:
    """Counts that a stage recorded; words and nested records are for its manifest."""
    facts = stage.get("facts", {})
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in facts.items() if isinstance(value, int))[:120]


def _configuration(provenance: Provenance) -> str:
    sections: dict[str, Any] = {}
    for stage in provenance.stages.values():
        sections |= stage.get("sections", {})
    return yaml.safe_dump(sections, sort_keys=False, width=100)
