"""Stage ``evaluate``: sample teacher and students from the same noise, score the images, and write the report."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rglcd.config import Evaluation, Model
from rglcd.errors import InputError
from rglcd.evaluation.comparison import Comparison, compare
from rglcd.evaluation.measurement import REAL, TEACHER, Measurement, Sampler, load, load_moments, measured, observe, reuse, save
from rglcd.evaluation.pages import report_html, report_markdown
from rglcd.evaluation.panels import Records
from rglcd.evaluation.pictures import Pictures, grid_png
from rglcd.evaluation.report_data import Provenance, report_data
from rglcd.evaluation.result_files import headlines, metrics, quality_csv, speeds
from rglcd.evaluation.verdict import verdict
from rglcd.evaluation.wording import PLAIN_ARM
from rglcd.rewards.kinship import akin
from rglcd.stages.evaluation_context import EvaluationContext, open_context
from rglcd.stages.publish import TIMINGS
from rglcd.stages.run import Output
from rglcd.stages.table import STAGES, stage_named
from rglcd.store.manifest import altered_files, read_manifest, write_json
from rglcd.store.staging import STAGING
from rglcd.training.distributed import join_world

METRICS, DRAWS = "metrics", "draws"


def evaluate(
    model: Model, evaluation: Evaluation, *, source: Path, pretrained: Path, student: Path, reward_model: Path | None, report: Output
) -> Mapping[str, Any]:
    """Measure the real images, the teacher and every arm of ``student`` at every number of steps; write the report.

    The page shows the training curves of ``reward_model``, too.
    Each sampler's measurement is a folder of its own in ``draws/``. What a killed run finished is kept, and measurements
    of the report published before are reused where teacher or arm, prompts and settings are the same.
    Raises :class:`InputError` for prompts, reference images or students that are missing or cannot be used.
    """
    started = time.perf_counter()
    with join_world() as world:
        if world.size > 1:
            raise InputError(f"evaluate draws in one process, not {world.size}: launch it with one")
        context = open_context(model, evaluation, source=source, pretrained=pretrained, student=student, device=world.device)
        _sweep(report.folder)
        measurements = [_measurement(sampler, context, report) for sampler in context.samplers]
    trained_on, akin = _trained_on(student, context)
    num_features = len(load_moments(report.folder / DRAWS / context.baselines[1].name).total)
    comparison = compare(measurements, seed=evaluation.seed, trained_on=trained_on, akin=akin, num_features=num_features)
    _write_numbers(report.folder, comparison)
    pretraining = [] if reward_model is None else _curve(reward_model)
    _write_pages(report.folder, comparison, measurements, context, pretraining, seconds=time.perf_counter() - started)
    return {"verdict": verdict(comparison), "images": comparison.num_images, "arms": context.arms, "samplers": len(measurements)}


# --- measuring -----------------------------------------------------------------------------------


def _measurement(sampler: Sampler, context: EvaluationContext, report: Output) -> Measurement:
    """The measurement of ``sampler``: kept by a killed run, reused from the last report, or made now."""
    key, folder = context.key(sampler), report.folder / DRAWS / sampler.name
    if report.previous is not None and _is_whole(report.previous, sampler):
        reuse(folder, report.previous / DRAWS / sampler.name, key=key)
    found = load(folder, key=key)
    if found is not None:
        return found.in_order_of(context.evaluation.scorers)
    is_real, panel = sampler.who == REAL, context.panel
    captions = context.reference.captions if is_real else context.captions
    observed = observe(
        context.draw_fn(sampler),
        panel,
        captions,
        batch_size=context.evaluation.batch_size,
        sheet_images=context.num_sheet_images,
        task=f"draw {sampler.name}" if not is_real else "score the real images",
    )
    baselines = {baseline.who: report.folder / DRAWS / baseline.name for baseline in context.baselines}
    moments = {who: load_moments(place) for who, place in baselines.items() if not is_real and who != sampler.who}
    measurement = measured(sampler, observed, panel.scorers, captions, real=moments.get(REAL), teacher=moments.get(TEACHER))
    save(folder, measurement, key=key, sheet=observed.sheet, moments=observed.moments if sampler.who in baselines else None)
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
    """The scorer that guided the arms, None if no reward did; and all scorers that have something in common with the reward."""
    manifest = read_manifest(student, made_by="distill")
    reward = manifest.sections["reward"]
    if reward["kind"] == "none" or set(context.arms) == {PLAIN_ARM}:
        return None, frozenset()
    expert, scorers = str(reward["expert"]), [str(reward["expert"])]
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
    seconds: float,
) -> None:
    drawn = [sampler for sampler in context.samplers if sampler.who != REAL]
    sheets = {sampler: Image.open(folder / DRAWS / sampler.name / "images.png") for sampler in drawn}
    judge = comparison.judges[0]
    pictures = Pictures(
        sheets=sheets,
        side=context.model.resolution,
        captions=context.captions[: context.evaluation.grid_prompts],
        judge=judge,
        scores={measurement.sampler: measurement.scores[judge] for measurement in measurements},
    )
    grid_png(sheets, pictures.captions, side=pictures.side).save(folder / "grid.png")
    data = report_data(
        comparison,
        pictures=pictures,
        provenance=_provenance(context, seconds=seconds),
        curves={arm: _curve(context.student / arm) for arm in context.arms},
        pretraining=pretraining,
    )
    (folder / "index.html").write_text(report_html(data), encoding="utf-8")
    (folder / "report.md").write_text(report_markdown(data), encoding="utf-8")


def _provenance(context: EvaluationContext, *, seconds: float) -> Provenance:
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
        prompts=context.evaluation.prompts,
        num_prompts=len(set(context.captions)),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} torch threads",
        versions={name: version(name) for name in ("torch", "diffusers", "transformers")},
    )


def _curve(folder: Path) -> list[dict[str, float]]:
    """The records of the training that made ``folder``."""
    path = folder / "curves.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
