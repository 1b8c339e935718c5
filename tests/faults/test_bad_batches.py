"""F11: a sample that makes a loss or a gradient infinite, not a number, or far too large, somewhere in a run of distill."""

import json
import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rglcd.config import Config
from rglcd.errors import TrainingDiverged, TryAgain
from rglcd.latents.order import sample_indices
from rglcd.store.manifest import read_manifest, results_digest, scan, write_manifest
from tests.faults.compare import assert_equal_artifacts
from tests.faults.rounds import Trial
from tests.faults.tiny_runs import NUM_IMAGES, Command, write_line
from tests.tiny_line import tiny_config

_STEPS, _BATCH, _WINDOW = 16, 4, 4  # one epoch: each sample is seen once
_RUN = (
    *("distillation.arms=[rg]", "distillation.match_compute=false", f"distillation.num_steps={_STEPS}"),
    *(f"distillation.batch_size={_BATCH}", "distillation.checkpoint_every=4", "distillation.learning_rate=1e-5"),
)
_ROLL_BACK = f"distillation.guard={{kind: roll_back, spike: 20, window: {_WINDOW}}}"
_MODES: dict[str, tuple[str, ...]] = {
    "no reward": ("reward={kind: none}",),
    "pixel reward": ("reward={kind: pixel, weight: 1.0, chunk_size: 2}",),
    "latent reward": (),
}
_NAN, _INF, _LARGE, _TEXT = (
    "latents not a number",
    "latents infinite",
    "text features ten thousand times too large",
    "text features not a number",
)
_CASES = (
    *(("no reward", _NAN), ("pixel reward", _LARGE), ("latent reward", _TEXT)),
    *(("no reward", _INF), ("pixel reward", _NAN), ("latent reward", _NAN)),
    *(("pixel reward", _TEXT), ("pixel reward", _INF), ("latent reward", _INF)),
)
_EACH = 4
_MOST_OFF = 0.01


@dataclass
class Lines:
    """The tiny line, and the curve of an unbroken run in each mode that was wanted, without a fault."""

    root: Path
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def curve(self, mode: str) -> list[dict[str, float]]:
        if mode not in self.curves:
            command = Command("distill", config_of(mode, _ROLL_BACK), self.root / "line", self.root / mode.replace(" ", "-"))
            command.run_unbroken()
            self.curves[mode] = curve_of(command)
        return self.curves[mode]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    root = tmp_path_factory.mktemp("bad-batches")
    write_line(root / "line", tiny_config())
    return Lines(root)


@pytest.mark.fault(
    "F11",
    fault="latents of one sample not a number or infinite, or its text features not a number or ten thousand times too large, at a "
    f"random step of distill (tiny networks; {', '.join(_MODES)})",
    must="with `guard: {kind: roll_back}` the run ends, its mean loss from there on within 1 % of the run without the fault, all weights "
    "finite, and a run stopped at random byte-identical; with `stop`, exit code 3 unless all figures are finite, and no bad number in any "
    "checkpoint",
    unit="runs",
    num_rounds=len(_CASES) * _EACH,
    sample=(0, 1),
)
def test_a_bad_batch_is_passed_over_or_ends_the_run(trial: Trial, lines: Lines, tmp_path: Path) -> None:
    mode, fault = _CASES[trial.number % len(_CASES)]
    rng, clean = trial.rng(), lines.curve(mode)
    step = rng.randint(_WINDOW if fault == _LARGE else 0, _STEPS - 2)
    line = tmp_path / "line"
    poison(
        lines.root / "line",
        line,
        fault,
        sample=int(sample_indices(0, NUM_IMAGES, start=step * _BATCH, count=_BATCH)[rng.randrange(_BATCH)]),
    )
    how = f"{mode}, {fault} at step {step + 1}"

    rolled = Command("distill", config_of(mode, _ROLL_BACK), line, tmp_path / "rolled")
    code = rolled.run()
    assert code == 0, f"{how}: rolling back ended with {code}: {rolled.log()}"
    curve = curve_of(rolled)
    assert curve[-1].get("passed_over") == 1, f"{how}: {curve[-1]}"
    assert_finite(rolled.output)
    off = abs(mean_loss(after(step, curve)) / mean_loss(after(step, clean)) - 1)
    assert off <= _MOST_OFF, f"{how}: the loss is {off:.1%} off"

    broken = Command("distill", config_of(mode, _ROLL_BACK), line, tmp_path / "broken")
    event = rng.randint(2, _STEPS)
    codes = [broken.run_ranks(1, stop_at_event=event), broken.run_ranks(1)]
    assert codes == [{TryAgain.exit_code}, {0}], f"{how}, stopped at event {event}: {codes}: {broken.log()}"
    num_files = assert_equal_artifacts(broken.output, rolled.output)

    stopping = Command("distill", config_of(mode), line, tmp_path / "stopping")
    code = stopping.run()
    wanted = 0 if fault == _LARGE else TrainingDiverged.exit_code
    assert code == wanted, f"{how}: stopping ended with {code}: {stopping.log()}"
    for checkpoints in tmp_path.rglob(".*.checkpoints"):
        assert_finite(checkpoints)
    said = f"one batch passed over, loss within {off:.1e} of the clean run's; stopped at event {event}, {num_files} files the same"
    trial.record(f"{how}: {said}; guard stop: exit code {code}")


def config_of(mode: str, *guard: str) -> Config:
    return tiny_config(*_RUN, *_MODES[mode], *guard)


def poison(whole: Path, line: Path, fault: str, *, sample: int) -> None:
    """Make ``line`` a copy of ``whole`` in which the latents of ``sample`` are as ``fault`` says, under a manifest that says so."""
    line.mkdir()
    for artifact in ("shards", "pretrained", "reward_model"):
        (line / artifact).symlink_to(whole / artifact)
    shutil.copytree(whole / "latents", line / "latents")
    row, paths = sample, iter(sorted((line / "latents").glob("*.safetensors")))
    while row >= len((tensors := load_file(path := next(paths)))["latent_mean"]):
        row -= len(tensors["latent_mean"])
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata()
    match fault:
        case "latents not a number":
            tensors["latent_mean"][row, 0, 0, 0] = math.nan
        case "latents infinite":
            tensors["latent_mean"][row, 0, 0, 0] = math.inf
        case "text features not a number":
            tensors["text.expert"][row, 0] = math.nan
        case _:
            tensors["text.expert"][row] *= 10_000
    save_file(tensors, path, metadata=header)
    files = scan(line / "latents")
    made = replace(read_manifest(line / "latents", made_by="cache"), files=files, digest=results_digest(files))
    write_manifest(line / "latents", made)


def curve_of(command: Command) -> list[dict[str, float]]:
    return [json.loads(row) for row in (command.output / "rg" / "curves.jsonl").read_text().splitlines()]


def mean_loss(curve: list[dict[str, float]]) -> float:
    """Of single steps it is that of four samples, and moves by more than a hundredth with weights that are one update apart."""
    return fmean(row["distance"] for row in curve)


def after(step: int, curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows of later steps."""
    return [row for row in curve if row["step"] > step + 1]


def assert_finite(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        bad = [name for name, tensor in load_file(path).items() if not bool(torch.isfinite(tensor.float()).all())]
        assert not bad, f"{path.relative_to(folder)}: {', '.join(bad[:3])}"
