"""The plan as text: a table for each stage, and as Markdown for the documentation."""

from dataclasses import asdict
from typing import Any

from rglcd.planning.counting import GIB
from rglcd.planning.plan import UTILISATION, Plan, StagePlan


def as_text(plan: Plan) -> str:
    """The tables, and what they mean for the choice of a card."""
    heads = [f"{plan.preset} on {plan.count} x {plan.gpu.name} ({plan.gpu.usable_gib:g} GiB each)"]
    return "\n\n".join(heads + [_stage_text(stage) for stage in plan.stages] + [_hours(plan)]) + "\n"


def as_markdown(plan: Plan) -> str:
    """The same, with a table for each stage."""
    heads = [f"## {plan.preset} on {plan.count} x {plan.gpu.name}"]
    return "\n\n".join(heads + [_stage_markdown(stage) for stage in plan.stages] + [_hours(plan)]) + "\n"


def as_json(plan: Plan) -> dict[str, Any]:
    """Plain values; memory in GiB."""
    stages = {stage.memory.stage: _stage_json(stage) for stage in plan.stages}
    return {"preset": plan.preset, "gpu": asdict(plan.gpu), "count": plan.count, "stages": stages, "hours": asdict(plan.hours)}


def _rows(stage: StagePlan) -> list[tuple[str, float, float, float]]:
    """Part, fixed, per sample, together: GiB."""
    samples = stage.memory.samples
    return [(part.name, part.line.fixed / GIB, part.line.each / GIB, part.line.at(samples) / GIB) for part in stage.memory.parts(samples)]


def _stage_text(stage: StagePlan) -> str:
    samples = stage.memory.samples
    lines = [f"{stage.memory.stage}, GiB a GPU, fullest at: {stage.memory.fullest(samples).name}"]
    lines.append(f"  {'':44}{'fixed':>9}{'a sample':>10}{f'at {samples}':>9}")
    lines += [f"  {name:44}{fixed:9.2f}{each:10.3f}{together:9.2f}" for name, fixed, each, together in _rows(stage)]
    lines.append(f"  {'sum':63}{stage.gib:9.2f}")
    return "\n".join([*lines, *(f"  {line}" for line in _verdict(stage))])


def _stage_markdown(stage: StagePlan) -> str:
    samples = stage.memory.samples
    lines = [f"| {stage.memory.stage}, GiB a GPU, fullest at: {stage.memory.fullest(samples).name} | fixed | a sample | at {samples} |"]
    lines.append("|---|---|---|---|")
    lines += [f"| {name} | {fixed:.2f} | {each:.3f} | {together:.2f} |" for name, fixed, each, together in _rows(stage)]
    lines.append(f"| sum | | | **{stage.gib:.2f}** |")
    return "\n".join(lines) + "\n\n" + " ".join(f"{line}." for line in _verdict(stage))


def _verdict(stage: StagePlan) -> list[str]:
    """In words, with what would fit."""
    memory, spare = stage.memory, f"{stage.spare:.0%} to spare" if stage.fits else f"{stage.gib - stage.gpu.usable_gib:.1f} GiB too many"
    smallest, for_one = stage.smallest_gpu, stage.smallest_gpu_for_one
    lines = [f"{stage.gpu.name}: {stage.verdict} ({spare}); largest {memory.setting}: {stage.largest or 'none, not even 1'}"]
    lines.append(
        f"smallest known card: {smallest.name if smallest else 'none'}; with {memory.setting}=1: {for_one.name if for_one else 'none'}"
    )
    return lines + list(memory.notes)


def _hours(plan: Plan) -> str:
    hours = plan.hours
    cards = f"{plan.count} x {plan.gpu.name}"
    return (
        f"Hours, by operations: training {hours.training:.1f} on {cards}, at an assumed {hours.utilisation:.0%} of "
        f"{plan.gpu.bf16_tflops:g} TFLOP/s each; in TF32 at an assumed {UTILISATION:.0%} of half of that: caching "
        f"{hours.caching_million:.1f} a million samples on one card; evaluation {hours.evaluation:.1f} on {hours.evaluation_cards}, "
        f"in {plan.evaluation_precision}{' as if it were TF32' if plan.evaluation_precision == 'float32' else ''}."
    )


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    return {
        "samples": stage.memory.samples,
        "setting": stage.memory.setting,
        "fullest": stage.memory.fullest(stage.memory.samples).name,
        "parts": [
            {"name": name, "fixed_gib": round(fixed, 3), "per_sample_gib": round(each, 4), "gib": round(together, 3)}
            for name, fixed, each, together in _rows(stage)
        ],
        "gib": round(stage.gib, 2),
        "fits": stage.fits,
        "spare": round(stage.spare, 4),
        "largest": stage.largest,
        "smallest_gpu": stage.smallest_gpu.name if stage.smallest_gpu else None,
        "smallest_gpu_for_one": stage.smallest_gpu_for_one.name if stage.smallest_gpu_for_one else None,
        "notes": list(stage.memory.notes),
    }
