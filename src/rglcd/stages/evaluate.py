"""Stage ``evaluate``: sample teacher and students from the same noise, score the images, and write the report."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rglcd.config import Evaluation, Model
from rglcd.evaluation.comparison import Comparison, compare
from rglcd.evaluation.contact_sheet import first_rows
from rglcd.evaluation.distance_names import main_kind
from rglcd.evaluation.distances import load_records
from rglcd.evaluation.looks import FOLDER as LOOKS
from rglcd.evaluation.looks import read_record
from rglcd.evaluation.measurement import REAL, TEACHER, Measurement, Sampler, load, measured, reuse, save
from rglcd.evaluation.observation import Batches
from rglcd.evaluation.pages import report_html, report_markdown
from rglcd.evaluation.panels import Records
from rglcd.evaluation.pictures import Pictures, grid_png, most_png_rows, most_shown
from rglcd.evaluation.report_data import Provenance, report_data
from rglcd.evaluation.result_files import headlines, metrics, quality_csv, speeds
from rglcd.evaluation.verdict import verdict
from rglcd.evaluation.wording import in_report_order
from rglcd.models.precision import drawing_products
from rglcd.models.threads import one_thread_if_small
from rglcd.rewards.kinship import akin
from rglcd.stages.computation import TIMINGS
from rglcd.stages.evaluation_context import BATCHES, EvaluationContext, open_context
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.prompts import protocol_of
from rglcd.stages.run import Output
from rglcd.stages.side_by_side import run_side_by_side
from rglcd.stages.student_export import RECORD
from rglcd.stages.table import STAGES, stage_named
from rglcd.store.manifest import altered_files, read_manifest, write_json
from rglcd.store.shard_tasks import Part
from rglcd.store.staging import STAGING
from rglcd.training.distributed import World, join_world, unequal_work

METRICS, DRAWS = "metrics", "draws"

_MOST_PROCESSES = 4
"""Drawing side by side: each opens all networks, which takes as long as small ones draw."""


def evaluate(
    model: Model, evaluation: Evaluation, *, source: Path, pretrained: Path, student: Path, reward_model: Path | None, report: Output
) -> Mapping[str, Any]:
    """Measure the real images, the teacher and every arm of ``student`` at every number of steps; write the report.

    The page shows the training curves of ``reward_model``, too.
    Each sampler's measurement is a folder of its own in ``draws/``. What a killed run finished is kept, down to single batches of
    images, and measurements of the report published before are reused where teacher or arm, prompts and settings are the same.
    Ranks share the batches out; the first alone puts them together, and writes. On a CPU of several cores, processes of one thread each do
    so where the networks are small.
    Raises :class:`InputError` for prompts, reference images or students that are missing or cannot be used.
    """
    started = time.perf_counter()
    open_on = partial(open_context, model, evaluation, source=source, pretrained=pretrained, student=student)
    with (
        join_world() as world,
        drawing_products(evaluation.precision, world.device),
        one_thread_if_small(Pretrained.open(pretrained).teacher, world.device) as at_once,
    ):
        context = open_on(device=world.device)
        if world.is_main:
            _sweep(report.folder)
            _reuse(context, report)
        num_parts = min(at_once, _MOST_PROCESSES) if world.size == 1 else 1
        if num_parts > 1 and (missing := _missing(context, report)):
            observe = partial(_observe_part, open_on, report.folder / DRAWS, missing, num_parts)
            run_side_by_side(observe, [str(index) for index in range(num_parts)], at_once=num_parts)
        num_threads = torch.get_num_threads()
        found = [_measurement(sampler, context, report, world) for sampler in context.samplers]
    if not world.is_main:
        return {}
    measurements = [measurement for measurement in found if measurement is not None]
    for batches in (report.folder / DRAWS).glob(f".*{BATCHES}"):
        shutil.rmtree(batches)
    trained_on, akin = _trained_on(student, context)
    records = load_records(report.folder / DRAWS / context.baselines[1].name)
    num_features = len(records[main_kind(context.feature_kinds)].moments.total)
    comparison = compare(
        measurements, seed=evaluation.seed, trained_on=trained_on, akin=akin, num_features=num_features, labels=context.labels
    )
    _write_numbers(report.folder, comparison)
    pretraining = [] if reward_model is None else _curve(reward_model)
    seconds = time.perf_counter() - started
    _write_pages(
        report.folder,
        comparison,
        measurements,
        context,
        pretraining,
        num_processes=world.size * num_parts,
        num_threads=num_threads,
        seconds=seconds,
    )
    return {
        "verdict": verdict(comparison),
        "images": comparison.num_images,
        "arms": context.arms,
        "samplers": len(measurements),
        "distance": context.distance,
    }


# --- measuring -----------------------------------------------------------------------------------


def _measurement(sampler: Sampler, context: EvaluationContext, report: Output, world: World) -> Measurement | None:
    """The measurement of ``sampler``: kept by a killed run, reused from the last report, or made now, by all ranks together.

    None on every rank but the first, which alone has it.
    """
    key, folder = context.key(sampler), report.folder / DRAWS / sampler.name
    found = load(folder, key=key) if world.is_main else None
    if not world.any(found is not None):
        batches = context.batches(sampler, report.folder / DRAWS)
        with unequal_work(world):  # what a killed run left may be one rank's batches alone
            _observe(batches, sampler, context, Part(world.rank, world.size))
        with unequal_work(world):
            if world.is_main:
                found = _put_together(batches, sampler, context, report.folder / DRAWS)
                shutil.rmtree(batches.folder)
    return None if found is None else found.in_order_of(context.evaluation.scorers, context.feature_kinds)


def _reuse(context: EvaluationContext, report: Output) -> None:
    """Take over from the last report what was measured by the same keys."""
    for sampler in context.samplers:
        if report.previous is not None and _is_whole(report.previous, sampler):
            reuse(report.folder / DRAWS / sampler.name, report.previous / DRAWS / sampler.name, key=context.key(sampler))


def _missing(context: EvaluationContext, report: Output) -> list[Sampler]:
    """The samplers that are not measured yet."""
    return [sampler for sampler in context.samplers if load(report.folder / DRAWS / sampler.name, key=context.key(sampler)) is None]


def _observe(batches: Batches, sampler: Sampler, context: EvaluationContext, share: Part) -> None:
    task = "score the real images" if sampler.who == REAL else f"draw {sampler.name}"
    batches.observe(lambda: context.draw_fn(sampler), lambda: context.panel, task=task, share=share)


def _observe_part(
    open_on: Callable[..., EvaluationContext], drawings: Path, samplers: Sequence[Sampler], num_parts: int, index: str
) -> None:
    """Draw and rate one of ``num_parts`` shares of the batches of ``samplers``, in a process that has opened nothing yet."""
    with join_world() as world:
        context = open_on(device=world.device)
        with drawing_products(context.evaluation.precision, world.device):
            for sampler in samplers:
                _observe(context.batches(sampler, drawings), sampler, context, Part(int(index), num_parts))


def _put_together(batches: Batches, sampler: Sampler, context: EvaluationContext, drawings: Path) -> Measurement:
    """The measurement that ``batches`` make, saved."""
    observed, baselines = batches.collected(), {baseline.who: drawings / baseline.name for baseline in context.baselines}
    is_arm = sampler.who not in baselines
    known = {who: load_records(place) for who, place in baselines.items() if sampler.who != REAL and who != sampler.who}
    measurement, records = measured(
        sampler,
        observed,
        context.panel.scorers,
        batches.captions,
        real=known.get(REAL),
        teacher=known.get(TEACHER),
        kinds=context.feature_kinds,
        basis=context.basis,
    )
    kept = None if is_arm else records
    save(drawings / sampler.name, measurement, key=context.key(sampler), sheet=observed.sheet, records=kept)
    return measurement


def _is_whole(previous: Path, sampler: Sampler) -> bool:
    """Whether what was published of ``sampler`` is still what its manifest says."""
    manifest = read_manifest(previous, made_by="evaluate")
    names = [name for name in manifest.files if name.startswith(f"{DRAWS}/{sampler.name}/")]
    return bool(names) and not altered_files(previous, manifest, names=names)


def _sweep(folder: Path) -> None:
    """Remove what a killed run had not finished writing."""
    for stale in [path for place in (folder, folder / DRAWS, folder / METRICS) for path in place.glob(f".*{STAGING}")]:
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


# --- writing the report --------------------------------------------------------------------------


def _trained_on(student: Path, context: EvaluationContext) -> tuple[str | None, frozenset[str]]:
    """The scorer that guided the last arm that one did, None if no reward did; and all that have something in common with a reward."""
    manifest = read_manifest(student, made_by="distill")
    rewards = [
        json.loads((student / arm / RECORD).read_text(encoding="utf-8"))["config"]["reward"] for arm in in_report_order(context.arms)
    ]
    scorers = [str(reward["expert"]) for reward in rewards if reward["kind"] != "none"]
    if not scorers:
        return None, frozenset()
    expert = scorers[-1]
    if "pretrain" in manifest.lineage:  # the proxy reads captions as this scorer does
        scorers.append(str(manifest.lineage["pretrain"]["sections"]["pretraining"]["scorer"]))
    pretrained = context.pretrained
    return expert, akin(scorers, pretrained.catalogue(), read_manifest(pretrained.folder, made_by="prepare"))


def _write_numbers(folder: Path, comparison: Comparison) -> None:
    write_json(folder / "metrics.json", metrics(comparison))
    (folder / METRICS).mkdir(exist_ok=True)
    for name, figures in headlines(comparison).items():
        write_json(folder / METRICS / f"{name}.json", figures)
    write_json(folder / "speed.json", speeds(comparison))
    (folder / "quality.csv").write_text(quality_csv(comparison), encoding="utf-8")


def _write_pages(
    folder: Path,
    comparison: Comparison,
    measurements: Sequence[Measurement],
    context: EvaluationContext,
    pretraining: Records,
    *,
    num_processes: int,
    num_threads: int,
    seconds: float,
) -> None:
    drawn = [sampler for sampler in context.samplers if sampler.who != REAL]
    judge, side = comparison.judges[0], context.model.resolution
    captions = context.captions[: min(context.evaluation.grid_prompts, most_shown(len(drawn), side=side))]
    sheets = {sampler: first_rows(folder / DRAWS / sampler.name / "images.png", len(captions), side=side) for sampler in drawn}
    pictures = Pictures(
        sheets=sheets,
        side=side,
        captions=captions,
        judge=judge,
        scores={measurement.sampler: measurement.scores[judge] for measurement in measurements},
    )
    grid_png(sheets, captions[: most_png_rows(len(sheets), side=side)], side=side).save(folder / "grid.png")
    data = report_data(
        comparison,
        pictures=pictures,
        provenance=_provenance(context, num_processes=num_processes, num_threads=num_threads, seconds=seconds),
        curves={arm: _curve(context.student / arm) for arm in context.arms},
        pretraining=pretraining,
        looks={arm: seen for arm in context.arms if (seen := read_record(context.student / arm / LOOKS)) is not None},
    )
    (folder / "index.html").write_text(report_html(data), encoding="utf-8")
    (folder / "report.md").write_text(report_markdown(data), encoding="utf-8")


def _provenance(context: EvaluationContext, *, num_processes: int, num_threads: int, seconds: float) -> Provenance:
    """The stages behind the student, this one last; it has no digest yet, for the page is part of its result."""
    sections = {"model": context.model, "evaluation": context.evaluation}
    this = {"version": stage_named("evaluate").version, "sections": {name: s.model_dump(mode="json") for name, s in sections.items()}}
    lineage = read_manifest(context.student, made_by="distill").lineage | {"evaluate": this}
    timings = context.student / TIMINGS
    seconds_by_stage = json.loads(timings.read_text(encoding="utf-8")) if timings.is_file() else {}
    device = context.device
    return Provenance(
        stages={stage.name: lineage[stage.name] for stage in STAGES if stage.name in lineage},
        seconds=seconds_by_stage | {"evaluate": seconds},
        teacher=context.model.teacher.uri,
        guidance_scale=context.evaluation.guidance_scale,
        distance=context.distance,
        prompts=context.evaluation.prompt_source.source,
        num_prompts=len(set(context.captions)),
        protocol=protocol_of(context.evaluation, context.prompt_set),
        precision=context.evaluation.precision,
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {num_threads} torch thread{'s' if num_threads > 1 else ''}",
        has_gpu=device.type == "cuda",
        num_processes=num_processes,
        versions={name: version(name) for name in ("torch", "diffusers", "transformers")},
    )


def _curve(folder: Path) -> list[dict[str, float]]:
    """The records of the training that made ``folder``."""
    path = folder / "curves.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
