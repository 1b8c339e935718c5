"""docs/results.md: tables and plots of the studies that are done, and which are still to come."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.claim_pictures import BEST_OF_FOUR
from benchmarks.claims import claims_text, compared, in_words
from benchmarks.comparisons import TEACHERS, drawn
from benchmarks.dots import dots_svg
from benchmarks.line_page import line_text
from benchmarks.page_parts import figure, gaps, head, not_run_yet, seeds_in_words, value, write_picture, written
from benchmarks.step import RECORDS
from benchmarks.studies import LINES, MAIN, STEPS, STUDIES, Study
from benchmarks.study_runs import COPIES, NUM_IMAGES, metrics_of, seeds_done
from benchmarks.trained_gates import trained_gates_text
from rglcd.evaluation.pages import figure_svg
from rglcd.evaluation.plots import Panel, Point, Series
from rglcd.store.manifest import folder_digest
from rglcd.toy.raters import raters_digest

GPU_RECORDS = Path("docs/gpu.jsonl")
"""What `make gpu` printed, with the commit that it ran on; lines are copied there by hand from the machine that had the card."""
MODELS = ("teacher", "flow-teacher", "expert", "judge", "features")
"""The frozen models of the toy world, by their folder in `toy`."""


def page_text() -> str:
    parts = [
        f"""# Results at toy size

Made by `make results` (three seeds; `make results-quick`: one) with the `params.yaml` of the same commit. A seed is that of the proxy's
pretraining and of the distillation; world, teacher, scorers and noise are shared, so a spread (± standard deviation) is that of training
only. {NUM_IMAGES} pictures a cell: {COPIES} of each held-out caption.

{claims_text()}

A claim is shown by a measure if its interval's lower end is above one half and every seed's figure is too, refuted if the upper end is
below and every seed's is; otherwise it is not shown. A tie is half a win; intervals are over captions and, for the panel, raters. All of
it is at 2 steps unless it says otherwise.

Who judges: `expert` is the reward that guides; it learnt from one group of simulated raters, `judge` (another architecture, other
pictures) from another. The `panel` is a third group: programs that stand for people, used for nothing else; no person was asked. `votes`
are those of a fourth. `checker` is a program: the share of five conditions, the caption's four attributes and neatness; `right and neat` is
the share of pictures that meet all. The Fréchet distance is on the toy's feature network and compares with nothing outside this page;
`diversity` is the distance between its features of two pictures of one caption.

World, raters, scorers and gates were fixed before any student was trained on them, and recipes were tuned on seeds 100 to 102, which are
not in this page ([decision 11](decisions/0011-a-toy-world-as-the-web-is.md)). {_frozen()}""",
    ]
    parts += [line_text(line, seeds_done([line])) for line in LINES]
    parts.append(_best_of_four(seeds_done([MAIN])))
    for study in STUDIES:
        seeds = seeds_done(study.runs)
        parts.append(_study(study, seeds) if seeds else not_run_yet(study.title))
    parts.append(trained_gates_text())
    if RECORDS.is_file():
        parts.append(_step_costs([json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]))
    if GPU_RECORDS.is_file():
        parts.append(_gpu_steps([json.loads(line) for line in GPU_RECORDS.read_text(encoding="utf-8").splitlines()]))
    return "\n\n".join(parts) + "\n"


def _frozen() -> str:
    """The digests of what was fixed."""
    digests = ", ".join(f"{name} `{folder_digest(Path('toy') / name)[:12]}`" for name in MODELS)
    return f"Digests: {digests}, raters `{raters_digest()[:12]}`."


def _best_of_four(seeds: Sequence[int]) -> str:
    title = "What the reward could give by choosing"
    if not seeds:
        return not_run_yet(title)
    write_picture(BEST_OF_FOUR, seeds)
    return f"""## {title}

Nothing is trained here: of four pictures of each caption the expert chooses, and its first choice is compared with the three others (the
last claims above). From its first choice to its fourth, {seeds_in_words(seeds[:1])}:

![The expert's first to fourth choice of the same captions' pictures](images/claim-{BEST_OF_FOUR}.png)"""


def _study(study: Study, seeds: Sequence[int]) -> str:
    cells = {run.label: [metrics_of(run, seed)[run.arm][str(STEPS)] for seed in seeds] for run in study.runs}
    rows = [f"| {label} | {' | '.join(figure(of, column) for column in study.columns)} |" for label, of in cells.items()]
    shown = study.columns[:4]
    differences = [
        f"| {label} | {' | '.join(gaps(of, cells[study.baseline], column) for column in shown)} |"
        for label, of in cells.items()
        if label != study.baseline
    ]
    plot = _weights_plot(study, seeds) if study.name == "over-optimisation" else _dots_plot(study, seeds)
    own = next(run for run in study.runs if run.label == study.baseline)
    asked = [
        f"| {run.label} | {' | '.join(in_words(compared('panel', drawn(run), theirs, seeds)) for theirs in (drawn(own), TEACHERS))} |"
        for run in study.runs
        if run is not own
    ]
    pictures = ""
    if study.name not in ("ict", "control-length"):
        write_picture(study.name, seeds)
        pictures = f"\n\n![The same captions and noise, a row for each run](images/claim-{study.name}.png)"
    return f"""## {study.title}

{study.question} At {STEPS} steps, {seeds_in_words(seeds)}.

| | {" | ".join(head(column) for column in study.columns)} |
|---|{"--:|" * len(study.columns)}
{chr(10).join(rows)}

Difference to “{study.baseline}”, seed by seed:

| | {" | ".join(head(column) for column in shown)} |
|---|{"---|" * len(shown)}
{chr(10).join(differences)}

By the panel, at {STEPS} steps (seed by seed):

| | wins against “{study.baseline}” | against the teacher's fifty |
|---|---|---|
{chr(10).join(asked)}

{written(study.name, study.title, plot)}{pictures}"""


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


def _dots_plot(study: Study, seeds: Sequence[int]) -> str:
    def values(column: str) -> list[list[float]]:
        return [[value(metrics_of(run, seed)[run.arm][str(STEPS)], column) for seed in seeds] for run in study.runs]

    return dots_svg([run.label for run in study.runs], {head(column): values(column) for column in study.columns[:3]})


def _weights_plot(study: Study, seeds: Sequence[int]) -> str:
    """Expert, judge and votes against the weight, in pixels and through the proxy, side by side; seeds' means."""
    panels = []
    for kind in ("pixel", "latent"):
        runs = [run for run in study.runs if run.name.startswith(f"{kind}-")]
        series = []
        for scorer, style in (("expert", "arm-rg"), ("judge", "arm-lcm"), ("votes", "arm-lrm")):
            points = []
            for run in runs:
                mean = statistics.mean(value(metrics_of(run, seed)[run.arm][str(STEPS)], scorer) for seed in seeds)
                points.append(Point(float(run.name.removeprefix(f"{kind}-")), mean, mean, mean))
            series.append(Series(scorer, style, tuple(points)))
        ticks = tuple(point.x for point in series[0].points)
        panels.append(Panel(f"{kind} reward", f"mean score at {STEPS} steps", tuple(series), (), ticks, "weight", logarithmic=True))
    return figure_svg(panels)
