"""``python -m benchmarks.results``: the toy line over three seeds, written to docs/results.md.

A seed is that of the latent reward model's pretraining, of the distillation and of the drawing; the world and its frozen models are
shared. Every run goes through the stages and is found done the next time, so a stopped command goes on.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rglcd.config import Config, load_params
from rglcd.data.manifest import read_manifest
from rglcd.launch.console import drawing
from rglcd.launch.execute import execute, process_boundary
from rglcd.progress import reporting_to
from rglcd.stages.table import SOURCE, inputs_of, stages_of

SEEDS = (0, 1, 2)
SHARED = frozenset({"shards", "pretrained", "latents"})
PAGE = Path("docs/results.md")
COLUMNS = ("expert", "judge", "checker", "whole", "fid")


def main() -> None:
    """Run what is not done yet, then write the page."""
    with process_boundary(), drawing(sys.stderr) as sink, reporting_to(sink):
        reports = {seed: _run(seed) for seed in SEEDS}
    PAGE.write_text(_page(reports), encoding="utf-8")
    print(f"{PAGE} is written")


def _config(seed: int) -> Config:
    overrides = [f"{section}.seed={seed}" for section in ("pretraining", "distillation", "evaluation")]
    return load_params(Path("params.yaml"), overrides=overrides)


def _run(seed: int) -> Path:
    """The report of the line with ``seed``."""
    config, own = _config(seed), Path("artifacts/seeds") / str(seed)

    def folder(artifact: str) -> Path:
        return Path("data") if artifact == SOURCE else (Path("artifacts") if artifact in SHARED else own) / artifact

    for stage in stages_of(config):
        sections = {name: config.section(name) for name in stage.sections}
        artifacts = {name: folder(name) for name in (*inputs_of(stage, config), *stage.outputs)}
        execute(stage.name, sections=sections, artifacts=artifacts)
    return own / "report"


def _page(reports: dict[int, Path]) -> str:
    metrics = {seed: json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for seed, folder in reports.items()}
    lineage = read_manifest(reports[SEEDS[0]], made_by="evaluate").lineage
    rows = "\n".join(_row(subject, steps, metrics) for subject in ("teacher", "lcm", "rg") for steps in metrics[SEEDS[0]].get(subject, {}))
    ahead = "\n".join(_ahead(steps, metrics) for steps in metrics[SEEDS[0]]["rg"])
    arms = {seed: read_manifest(folder.parent / "student", made_by="distill").facts["arms"] for seed, folder in reports.items()}
    return f"""# Results at toy size

Made by `make results` with the `params.yaml` of the same commit; {len(SEEDS)} seeds ({", ".join(map(str, SEEDS))}) of the latent reward
model, the distillation and the drawing. World, teacher and scorers are shared, so the spread is that of training and drawing only.
Held-out captions; {lineage["evaluate"]["facts"]["images"]} images a cell. Mean ± standard deviation over the seeds.

`expert` is the reward that guided the `rg` arm; `judge` (another architecture, other data) and `checker` (a program; mean of five
attributes) never did; `whole` is the share of images with all five attributes right; FID is on the toy's feature network and compares
with nothing outside this page. `lcm` is the control: no reward, and as many more steps as the reward costs in counted operations
({", ".join(f"{arms[seed]['lcm']['num_steps']} steps against {arms[seed]['rg']['num_steps']}" for seed in SEEDS[:1])}).

| who | steps | {" | ".join(COLUMNS)} |
|---|---|{"---|" * len(COLUMNS)}
{rows}

## The guided student against the compute-matched control

Difference `rg` - `lcm`, seed by seed.

| steps | judge | checker | whole | FID |
|---|---|---|---|---|
{ahead}
"""


def _row(subject: str, steps: str, metrics: dict[int, Any]) -> str:
    cells = [_spread([_value(metrics[seed][subject][steps], column) for seed in metrics]) for column in COLUMNS]
    return f"| {subject} | {steps} | {' | '.join(cells)} |"


def _ahead(steps: str, metrics: dict[int, Any]) -> str:
    cells = []
    for column in ("judge", "checker", "whole", "fid"):
        differences = [_value(metrics[seed]["rg"][steps], column) - _value(metrics[seed]["lcm"][steps], column) for seed in metrics]
        cells.append(", ".join(f"{difference:+.3f}" for difference in differences))
    return f"| {steps} | {' | '.join(cells)} |"


def _value(cell: dict[str, Any], column: str) -> float:
    """``whole`` is the checker's share of full marks; any other word a scorer's mean, or a figure of its own."""
    if column == "whole":
        return float(cell["checker"]["full_marks"])
    figure = cell[column]
    return float(figure["mean"] if isinstance(figure, dict) else figure)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
