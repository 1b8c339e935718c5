"""docs/results.md: tables and plots of the studies that are done, and which are still to come."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.dots import dots_svg
from benchmarks.step import RECORDS
from benchmarks.studies import MAIN, STEPS, STUDIES, Study
from benchmarks.study_runs import NUM_IMAGES, folder_of, metrics_of, seeds_done
from rglcd.evaluation.pages import figure_svg
from rglcd.evaluation.plots import Level, Panel, Point, Series
from rglcd.store.manifest import read_manifest

PAGE = Path("docs/results.md")
GPU_RECORDS = Path("docs/gpu.jsonl")
"""What `make gpu` printed, with the commit that it ran on; lines are copied there by hand from the machine that had the card."""
MAIN_COLUMNS = ("expert", "judge", "checker", "whole", "frechet", "frechet_to_teacher", "diversity")
HEADS = {
    "frechet": "Fréchet distance",
    "frechet_to_teacher": "the same, to teacher",
    "high_frequency": "fine detail",
    "whole": "right and neat",
}


def page_text() -> str:
    parts = [
        f"""# Results at toy size

Made by `make results` (three seeds; `make results-quick`: one) with the `params.yaml` of the same commit. Each figure says which seeds
it is of: a seed is that of the latent reward model and the distillation. World, teacher, scorers and noise are shared, so a spread
(± standard deviation) is that of training only. Held-out captions, {NUM_IMAGES} images a cell.

`expert` is the reward that guides; it learnt from one group of simulated raters, `judge` (another architecture, other pictures) from
another (decisions/0011). `checker` is a program: the share of five conditions, the caption's four attributes and neatness; `right and
neat` is the share of images that meet all. The Fréchet distance is on the toy's feature network and compares with nothing outside this
page; `diversity` is the distance between its features of two images of one caption.""",
    ]
    parts.append(_main(seeds) if (seeds := seeds_done([MAIN])) else "No run is finished yet.")
    for study in STUDIES:
        seeds = seeds_done(study.runs)
        parts.append(_study(study, seeds) if seeds else f"## {study.title}\n\nNot run yet: `make results` goes on here.")
    if RECORDS.is_file():
        parts.append(_step_costs([json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]))
    if GPU_RECORDS.is_file():
        parts.append(_gpu_steps([json.loads(line) for line in GPU_RECORDS.read_text(encoding="utf-8").splitlines()]))
    return "\n\n".join(parts) + "\n"


def _said(seeds: Sequence[int]) -> str:
    return f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"one seed ({seeds[0]})"


def _main(seeds: Sequence[int]) -> str:
    arms = read_manifest(folder_of(MAIN, seeds[0]) / "student", made_by="distill").facts["arms"]
    cells = {
        (who, steps): [metrics_of(MAIN, seed)[who][steps] for seed in seeds]
        for who in ("teacher", "lcm", "rg")
        for steps in _steps(who, seeds)
    }
    rows = [f"| {who} | {steps} | {' | '.join(_figure(of, column) for column in MAIN_COLUMNS)} |" for (who, steps), of in cells.items()]
    wins = [
        f"| {steps} | {' | '.join(_wins('rg', steps, seeds, opponent) for opponent in ('lcm', 'teacher'))} |"
        for steps in _steps("rg", seeds)
    ]
    compared = ("judge", "checker", "whole", "frechet")
    gaps = [
        f"| {steps} | {' | '.join(_gaps(cells['rg', steps], cells['lcm', steps], column) for column in compared)} |"
        for steps in _steps("rg", seeds)
    ]
    return f"""## Two guided steps against the teacher's fifty, and against steps without a reward

`lcm` is the control: no reward, and as many more training steps as the reward costs in counted operations ({arms["lcm"]["num_steps"]}
against {arms["rg"]["num_steps"]}). {_said(seeds).capitalize()}.

| who | steps | {" | ".join(_head(column) for column in MAIN_COLUMNS)} |
|---|--:|{"--:|" * len(MAIN_COLUMNS)}
{chr(10).join(rows)}

{_drawn("steps", "Judge and checker against the number of steps", _main_plot(seeds))}

Share of images on which `rg` wins by the judge, a tie being half a win, with its 95 % interval, seed by seed:

| steps | against lcm | against the teacher's fifty |
|--:|---|---|
{chr(10).join(wins)}

Difference `rg` - `lcm`, seed by seed:

| steps | {" | ".join(_head(column) for column in compared)} |
|--:|{"---|" * len(compared)}
{chr(10).join(gaps)}

The choice of pictures leaves a mean uncertain by up to ±{_chance(seeds, "judge"):.3f} by the judge and ±{_chance(seeds, "checker"):.3f} by
the checker (95 %). Here and below, a difference whose sign is another with another seed shows nothing."""


def _study(study: Study, seeds: Sequence[int]) -> str:
    cells = {run.label: [metrics_of(run, seed)[run.arm][str(STEPS)] for seed in seeds] for run in study.runs}
    rows = [f"| {label} | {' | '.join(_figure(of, column) for column in study.columns)} |" for label, of in cells.items()]
    compared = study.columns[:4]
    gaps = [
        f"| {label} | {' | '.join(_gaps(of, cells[study.baseline], column) for column in compared)} |"
        for label, of in cells.items()
        if label != study.baseline
    ]
    drawn = _weights_plot(study, seeds) if study.name == "over-optimisation" else _dots_plot(study, seeds)
    return f"""## {study.title}

{study.question} At {STEPS} steps, {_said(seeds)}.

| | {" | ".join(_head(column) for column in study.columns)} |
|---|{"--:|" * len(study.columns)}
{chr(10).join(rows)}

Difference to “{study.baseline}”, seed by seed:

| | {" | ".join(_head(column) for column in compared)} |
|---|{"---|" * len(compared)}
{chr(10).join(gaps)}

{_drawn(study.name, study.title, drawn)}"""


def _step_costs(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        device, versions = record["hardware"], record["versions"]
        machine = device.get("gpu") or f"{device['cpu']}, {device['threads']} thread{'s' if device['threads'] > 1 else ''}"
        machine = "nothing: counted" if record["device"] == "meta" else machine
        setting = f"{record['model']}, {record['resolution']} px, {record['precision']}, {record['batch_size']}, {record['execution']}"
        for mode, cost in record["modes"].items():
            flops = f"{cost['gflop_per_sample']:,} / {cost['needed_gflop_per_sample']:,}"
            timed = [cost.get("ms_per_step"), cost.get("samples_per_s")]
            ms, rate, peak = ("–" if figure is None else f"{figure:,}" for figure in (*timed, cost.get("memory", {}).get("peak_mib")))
            reached = "–" if cost.get("mfu") is None else f"{100 * cost['mfu']:.0f} %"
            ratio = f"{cost['baseline']['ratio']:.2f}" if "baseline" in cost else "–"
            figures = f"{ms} | {rate} | {ratio} | {flops} | {peak} | {reached}"
            rows.append(f"| {setting} | {mode} | {figures} | {machine}; torch {versions['torch']} |")
    return f"""## What a training step costs

`make bench BENCH="--baseline --batch-size 16 --chunk-size 32 --steps 15 --record"`, eager and with `--execution compiled`: random
weights; `plain` has no reward, `pixel` the reward through the decoder, `latent` the proxy, tuned on labels for all of the batch (before
commit 978bcfa the real images' too, which presets have in the cache). Milliseconds are medians. `beside`: how many times as fast as the
published scripts' step (`benchmarks/baseline.py`: eager, images encoded in the step), turn by turn in the same process. Operations as
counted by torch, and as the networks need by themselves; fused attention, which the meta device has not, computes its scores again on the
way back. `BENCH="--model sd21 --device meta --record"` only counts, on any machine. MFU is the needed operations over the data sheet's
dense bfloat16 peak. A batch of 8 does not fill an H200: the teacher's pass on 16 rows takes it as long as the target's on 8. Times on a
CPU show that the step runs and how its parts compare, not what it costs where it is meant to run.

| model, pixels, precision, batch, execution | mode | ms | samples/s | beside | GFLOP a sample, counted / needed | peak MiB | MFU | on |
|---|---|--:|--:|--:|--:|--:|--:|---|
{chr(10).join(rows)}"""


def _gpu_steps(lines: Sequence[dict[str, Any]]) -> str:
    """The steps of `make gpu`, with the kernels that took most of the GPU's time."""
    steps = [line for line in lines if "ratio" in line]
    rows = [
        f"| {step['mode']}, {step['execution']} | {step['batch_size']} | {step['ms_per_step']:,.0f} | {step['baseline_ms']:,.0f} | "
        f"{step['ratio']:.2f} | {step['peak_mib'] / 1024:.1f} | {100 * step['mfu']:.0f} % | {_kernels(step)} |"
        for step in steps
    ]
    hardware, versions = steps[0]["hardware"], steps[0]["versions"]
    return f"""## A step on a GPU

`make gpu` on one {hardware["gpu"]} (torch {versions["torch"]}, commit {steps[0]["commit"]}): Stable Diffusion 2.1's size at
{steps[0]["resolution"]} pixels, random weights, {steps[0]["precision"]}; `docs/gpu.jsonl` has all of it. The published scripts' step ran
turn by turn in the same process; it decodes with our VAE, whose order of values was mended on the way, so its own would be slower.

| mode | batch | ms | published scripts, ms | ratio | peak GiB | MFU | largest kernels, share of the GPU's time |
|---|--:|--:|--:|--:|--:|--:|---|
{chr(10).join(rows)}"""


def _kernels(step: dict[str, Any]) -> str:
    """Of C++ names the function alone: `void at::native::f<...>(...)` is `f`."""
    largest = [
        (re.sub(r"^void |\(anonymous namespace\)::|[<(].*", "", kernel["kernel"]).split("::")[-1], kernel["share"])
        for kernel in step["largest_kernels"][:3]
    ]
    return ", ".join(f"`{name[:40]}` {100 * share:.0f} %" for name, share in largest)


def _drawn(name: str, title: str, svg: str) -> str:
    """The Markdown of a plot that is written beside the page."""
    path = PAGE.parent / "images" / f"{name}.svg"
    path.write_text(svg, encoding="utf-8")
    return f"![{title}]({path.relative_to(PAGE.parent)})"


def _main_plot(seeds: Sequence[int]) -> str:
    """Judge and checker against the number of steps, the teacher's as a line across; seeds' means, and from the least to the most."""
    return figure_svg([_steps_panel(scorer, seeds) for scorer in ("judge", "checker")])


def _steps_panel(scorer: str, seeds: Sequence[int]) -> Panel:
    def points(who: str) -> tuple[Point, ...]:
        of = {steps: [_value(metrics_of(MAIN, seed)[who][steps], scorer) for seed in seeds] for steps in _steps(who, seeds)}
        return tuple(Point(float(steps), statistics.mean(values), min(values), max(values)) for steps, values in of.items())

    (teacher,) = points("teacher")
    level = Level("teacher", "arm-teacher", teacher.y, teacher.low, teacher.high)
    arms = tuple(Series(who, f"arm-{who}", points(who)) for who in ("lcm", "rg"))
    ticks = tuple(point.x for point in arms[0].points)
    return Panel(scorer, "mean score; whiskers from the least seed to the most", arms, (level,), ticks, "steps", logarithmic=True)


def _dots_plot(study: Study, seeds: Sequence[int]) -> str:
    def values(column: str) -> list[list[float]]:
        return [[_value(metrics_of(run, seed)[run.arm][str(STEPS)], column) for seed in seeds] for run in study.runs]

    return dots_svg([run.label for run in study.runs], {_head(column): values(column) for column in study.columns[:3]})


def _weights_plot(study: Study, seeds: Sequence[int]) -> str:
    """Expert and judge against the weight, in pixels and through the proxy, side by side; seeds' means."""
    panels = []
    for kind in ("pixel", "latent"):
        runs = [run for run in study.runs if run.name.startswith(f"{kind}-")]
        series = []
        for scorer, style in (("expert", "arm-rg"), ("judge", "arm-lcm"), ("checker", "arm-lrm")):
            points = []
            for run in runs:
                mean = statistics.mean(_value(metrics_of(run, seed)[run.arm][str(STEPS)], scorer) for seed in seeds)
                points.append(Point(float(run.name.removeprefix(f"{kind}-")), mean, mean, mean))
            series.append(Series(scorer, style, tuple(points)))
        ticks = tuple(point.x for point in series[0].points)
        panels.append(Panel(f"{kind} reward", f"mean score at {STEPS} steps", tuple(series), (), ticks, "weight", logarithmic=True))
    return figure_svg(panels)


# --- numbers -------------------------------------------------------------------------------------


def _steps(who: str, seeds: Sequence[int]) -> list[str]:
    return list(metrics_of(MAIN, seeds[0])[who])


def _value(cell: dict[str, Any], column: str) -> float:
    """``whole`` is the checker's share of full marks; any other word a scorer's mean, or a figure of its own."""
    if column == "whole":
        return float(cell["checker"]["full_marks"])
    figure = cell[column]
    return float(figure["mean"] if isinstance(figure, dict) else figure)


def _figure(of: Sequence[dict[str, Any]], column: str) -> str:
    if any(column != "whole" and column not in cell for cell in of):
        return "–"
    values = [_value(cell, column) for cell in of]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _gaps(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], column: str) -> str:
    return ", ".join(f"{_value(one, column) - _value(other, column):+.3f}" for one, other in zip(ours, theirs, strict=True))


def _chance(seeds: Sequence[int], scorer: str) -> float:
    """Half of the widest 95 % interval of ``scorer``'s mean over the pictures of a cell of the first table."""
    means = [metrics_of(MAIN, seed)[arm][str(STEPS)][scorer] for seed in seeds for arm in ("lcm", "rg")]
    return max((mean["high"] - mean["low"]) / 2 for mean in means)


def _wins(who: str, steps: str, seeds: Sequence[int], opponent: str) -> str:
    rates = [metrics_of(MAIN, seed)[who][steps]["judge"][f"win_rate_{opponent}"] for seed in seeds]
    return ", ".join(f"{100 * rate['value']:.0f} % ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})" for rate in rates)


def _head(column: str) -> str:
    return HEADS.get(column, column)
