"""The runs of the studies on disk: where each lies, how it is made, and whether it is done.

A seed is that of the latent reward model's pretraining and of the distillation; world, frozen models and the noise that pictures
are drawn from are shared. Every run goes through the stages and is found done the next time.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies import LINES, STEPS, Run
from rglcd.config import Config, Section, load_params
from rglcd.launch.execute import execute
from rglcd.stages.export_images import export_images
from rglcd.stages.run import standing_outcome
from rglcd.stages.table import SOURCE, inputs_of, stages_of
from rglcd.store.manifest import digest_of, folder_digest, read_manifest

ROOT = Path("artifacts/results")
COPIES = 4
"""Pictures of each held-out caption."""
NUM_IMAGES = 600
MOST_SEEDS = 3
OF_TEACHER = frozenset({"pretrained", "latents"})

TEACHER = "teacher-50"

_DONE: set[tuple[Run, int]] = set()

_VOTERS = (
    "preparation.scorers.votes={kind: toy-votes}",
    "caching.scorers=[expert, checker, votes]",
    "evaluation.scorers=[expert, judge, checker, votes]",
)
"""One scorer more than the demo has: simulated raters of a group of their own, as a reward and as a measure."""

Cells = dict[str, dict[str, Any]]
"""What ``metrics.json`` says of an arm, by number of steps."""


def stages_of_run(run: Run, seed: int) -> Iterator[tuple[str, dict[str, Section], dict[str, Path]]]:
    """Names, sections and artifacts of the stages of a run."""
    config, own = _config(run, seed), folder_of(run, seed)
    for stage in stages_of(config):
        artifacts = {name: _artifact(name, config, own) for name in (*inputs_of(stage, config), *stage.outputs)}
        yield stage.name, {name: config.section(name) for name in stage.sections}, artifacts


def seeds_done(runs: Sequence[Run]) -> list[int]:
    """The seeds with which every one of ``runs`` is finished and up to date."""
    return [seed for seed in range(MOST_SEEDS) if all(_is_done(run, seed) for run in runs)]


def _is_done(run: Run, seed: int) -> bool:
    """A run found finished is not checked again: checking reads every byte of its results."""
    if (run, seed) not in _DONE:
        there = (folder_of(run, seed) / "report" / "manifest.json").is_file()
        if there and all(standing_outcome(*stage) for stage in stages_of_run(run, seed)) and _is_drawn(run, seed):
            _DONE.add((run, seed))
    return (run, seed) in _DONE


def _is_drawn(run: Run, seed: int) -> bool:
    return all(_is_drawn_by(run, seed, sampler) for sampler in _samplers(run, seed))


def _is_drawn_by(run: Run, seed: int, sampler: str) -> bool:
    return len(list(pictures_of(run, seed, sampler).glob("*.png"))) == NUM_IMAGES


def make(run: Run, seed: int) -> None:
    """All stages of ``run`` with ``seed``, run as every interface runs them."""
    own = folder_of(run, seed)
    # Teacher and real images are those of the teacher's first run: evaluate reuses their measurements from the report it finds.
    measured = folder_of(line_of(run), 0) / "report"
    if own / "report" != measured and not (own / "report").exists():
        shutil.copytree(measured, own / "report")
    for name, sections, artifacts in stages_of_run(run, seed):
        execute(name, sections=sections, artifacts=artifacts)
    for sampler in (one for one in _samplers(run, seed) if not _is_drawn_by(run, seed, one)):
        config, folder = _config(run, seed), pictures_of(run, seed, sampler)
        needed = {name: _artifact(name, config, own) for name in ("source", "pretrained", "student", "report")}
        export_images(config, needed, layout="flat", sampler=sampler, count=COPIES, folder=folder)


def pictures_of(run: Run, seed: int, sampler: str) -> Path:
    """The folder of a sampler's pictures, `COPIES` of each held-out caption, as ``rglcd export-images --layout flat`` writes them.

    The teacher's are the same with every seed. The model's digest is in the name: pictures of another are never taken for its own.
    """
    if sampler == TEACHER:
        config = _config(run, seed)
        return _teachers_folder(config) / "pictures" / folder_digest(Path(config.model.teacher.uri))[:12]
    student = read_manifest(folder_of(run, seed) / "student", made_by="distill").digest
    return folder_of(run, seed) / "pictures" / student[:12] / sampler


def _samplers(run: Run, seed: int) -> list[str]:
    """What the panel is shown of a run."""
    if run.name != line_of(run).name:
        return [f"{run.arm}-{STEPS}"]
    students = [f"{arm}-{steps}" for arm in ("lcm", "rg") for steps in _config(run, seed).evaluation.num_steps]
    return [TEACHER, *students]


def _config(run: Run, seed: int) -> Config:
    # All draw from the same noise, so the teacher is measured once.
    common = [f"pretraining.seed={seed}", f"distillation.seed={seed}", f"evaluation.num_images={NUM_IMAGES}"]
    return load_params(Path("params.yaml"), overrides=[*_VOTERS, *common, *run.overrides])


def folder_of(run: Run, seed: int) -> Path:
    return ROOT / str(seed) / run.name


def proxies_of(run: Run, seed: int) -> tuple[Path, Path]:
    """The folders of the proxy of a run that tunes one, as pretrained and as tuned."""
    own = folder_of(run, seed)
    return _artifact("reward_model", _config(run, seed), own), own / "student" / run.arm / "reward_model"


def line_of(run: Run) -> Run:
    """The line that the run belongs to; runs of studies are the first one's."""
    return next((line for line in LINES if line.name == run.name), LINES[0])


def _artifact(name: str, config: Config, own: Path) -> Path:
    if name == SOURCE:
        return Path("data")
    if name == "shards":
        return ROOT / name
    if name == "reward_model":
        # Runs that pretrain the same proxy share it.
        return _teachers_folder(config) / "proxies" / digest_of(config.pretraining.model_dump(mode="json"))[:12]
    return (_teachers_folder(config) if name in OF_TEACHER else own) / name


def _teachers_folder(config: Config) -> Path:
    """What all runs with one teacher share."""
    return ROOT / "teachers" / Path(config.model.teacher.uri).name


def metrics_of(run: Run, seed: int) -> dict[str, Cells]:
    """``metrics.json`` of a run's report."""
    text = (folder_of(run, seed) / "report" / "metrics.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
