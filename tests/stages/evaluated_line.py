"""The tiny line up to its report: two trained arms, prompts, reference images, a feature network."""

from pathlib import Path

from rglcd import progress
from rglcd.config import Config
from rglcd.store.manifest import NOT_HASHED
from tests.publishing import publish
from tests.tiny_line import TINY_EVALUATION, run, tiny_config, up_to_latents, write_tiny_evaluation_data, write_tiny_features

NOT_COMPARED = NOT_HASHED | {"manifest.json"}
DRAWN = ["teacher-3", "lcm-1", "lcm-2", "rg-1", "rg-2"]


def config(*overrides: str) -> Config:
    """Six images of each sampler, four at once."""
    return tiny_config(*TINY_EVALUATION, *overrides)


def make_evaluated_line(root: Path) -> None:
    """All artifacts under ``root``, and what ``evaluate`` reads beside them."""
    up_to_latents(root, config())
    run(root, config(), "pretrain")
    run(root, config(), "distill")
    write_tiny_evaluation_data(root / "data")
    write_tiny_features(root / "pretrained" / "features")
    publish(root / "pretrained", stage="prepare")
    run(root, config(), "evaluate")


def results(report: Path) -> dict[str, bytes]:
    """Every file but those that hold times."""
    paths = (path for path in sorted(report.rglob("*")) if path.is_file() and path.name not in NOT_COMPARED)
    return {path.relative_to(report).as_posix(): path.read_bytes() for path in paths}


def drawn_again(root: Path, *overrides: str) -> set[str]:
    """Runs evaluate, and the samplers whose images it had to draw."""
    tasks: set[str] = set()
    with progress.reporting_to(lambda event: tasks.add(event.task.removeprefix("draw "))):
        run(root, config(*overrides), "evaluate")
    return tasks
