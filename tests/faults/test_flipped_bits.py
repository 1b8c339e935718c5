"""F5: files of which one bit is another."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.sharding.shards import read_shard, shard_entries
from rglcd.stages.computation import TIMINGS
from rglcd.store.manifest import read_verified
from rglcd.training.checkpoint import Checkpointer
from tests.faults.refusals import refusal_of
from tests.faults.rounds import Trial, evenly
from tests.tiny_line import run, tiny_config, up_to_latents


@dataclass(frozen=True)
class Victim:
    """A file, who reads it, and what the refusal must name."""

    path: Path
    read: Callable[[], object]
    named: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def victims(root: Path) -> list[Victim]:
    """The files of a pipeline that has run up to the student, and of two checkpoints."""
    up_to_latents(root, tiny_config())
    run(root, tiny_config(), "pretrain")
    run(root, tiny_config(), "distill")
    checkpoints = Checkpointer(root / "checkpoints")
    for step in (1, 2):
        generator = torch.Generator().manual_seed(step)
        parts = {name: {"weight": torch.randn(40, 10, generator=generator)} for name in ("student", "optimizer")}
        newest = checkpoints.save(step, parts, {"curve": [{"step": step, "loss": 0.5}]})
    shards, latents = root / "shards", root / "latents"

    def read_shards() -> None:
        for entry in shard_entries(shards):
            list(read_shard(shards / entry.name, entry))

    def read_latents() -> None:
        cache = LatentCache.open(latents)
        cache.batch(torch.arange(len(cache)))
        cache.captions(torch.arange(len(cache)))

    def resume() -> None:
        latest = checkpoints.latest()
        if latest is not None and latest.step == 1:
            raise InputError(f"{newest} is passed over for the one before")

    read_shards(), read_latents()
    assert refusal_of(resume) is None, "the newest checkpoint is not read though nothing was done to it"
    readers: list[tuple[Path, Callable[[], object]]] = [
        *((path, read_shards) for path in sorted([*shards.glob("*.tar"), *shards.glob("*_stats.json"), shards / "manifest.json"])),
        *((path, read_latents) for path in sorted(latents.iterdir()) if path.name != TIMINGS),
        *((path, resume) for path in sorted(newest.iterdir())),
        *((path, lambda: read_verified(root / "pretrained", made_by="prepare")) for path in _files(root / "pretrained")),
        *((path, lambda: read_verified(root / "student", made_by="distill")) for path in _files(root / "student")),
        (latents / TIMINGS, lambda: _pretrain_anew(root)),
    ]
    return [Victim(path, read, newest.name if read is resume else path.name) for path, read in readers]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _pretrain_anew(root: Path) -> None:
    shutil.rmtree(root / "reward_model", ignore_errors=True)
    run(root, tiny_config(), "pretrain")


@pytest.mark.fault(
    "F5",
    fault="one bit flipped at random in a tar, record, latent file, checkpoint, manifest, weight file or timings",
    must="found by whoever reads it, by name; a checkpoint is passed over for the one before",
    unit="flips",
    num_rounds=1000,
    sample=evenly(100, of=1000),
)
def test_flipped_bit_is_found_and_the_file_named(trial: Trial, root: Path, victims: list[Victim]) -> None:
    rng, victim = trial.rng(), victims[trial.number % len(victims)]
    whole = victim.path.read_bytes()
    place, bit = rng.randrange(len(whole)), rng.randrange(8)
    victim.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    try:
        refusal = refusal_of(victim.read)
    finally:
        victim.path.write_bytes(whole)
    name = victim.path.relative_to(root)
    assert refusal is not None, f"bit {bit} of byte {place} of {name} flipped, and it was read"
    assert victim.named in refusal, f"{name}: the message does not name it: {refusal}"
    trial.record(f"bit {bit} of byte {place} of {name}: {refusal}")
