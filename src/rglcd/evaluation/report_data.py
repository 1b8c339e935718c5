"""Everything that the report page and its Markdown table show, as plain data: the templates draw it.

Numbers stay numbers, so that a template decides how they are written; sentences that depend on results are made here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import yaml

from rglcd.evaluation.comparison import Comparison
from rglcd.evaluation.distance_names import LABELS
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.kernel_distance import KernelSample
from rglcd.evaluation.look_report import LookReport, look_report
from rglcd.evaluation.looks import Record
from rglcd.evaluation.measurement import TEACHER
from rglcd.evaluation.panels import Records, quality_panels, tradeoffs, training_panels
from rglcd.evaluation.pictures import PictureGrid, Pictures, picture_grid
from rglcd.evaluation.plots import Layout, layout
from rglcd.evaluation.report_tables import GroupTable, SamplerTable, group_tables, sampler_table
from rglcd.evaluation.scatter import TradeoffLayout, tradeoff_layout
from rglcd.evaluation.verdict import findings, verdict
from rglcd.evaluation.wording import in_words, label_of


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: enough to make them again.

    ``stages`` is the lineage by stage name (``version``, ``digest``, ``sections``), in order; ``seconds`` what each took.
    ``distance`` says what distances are to, and by which features; ``protocol`` what a reader must know of a published set of prompts
    (empty: nothing); ``num_processes`` drew side by side, each on a ``device`` of its own if that is a GPU.
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
    kernel: KernelSample | None
    grid: PictureGrid
    quality: tuple[Layout, ...]
    tradeoffs: tuple[TradeoffLayout, ...]
    table: SamplerTable
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
        kernel=comparison.kernel,
        grid=picture_grid(pictures),
        quality=tuple(map(layout, quality_panels(comparison))),
        tradeoffs=tuple(map(tradeoff_layout, tradeoffs(comparison))),
        table=sampler_table(comparison),
        groups=group_tables(comparison),
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
