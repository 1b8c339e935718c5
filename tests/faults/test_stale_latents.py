"""F13: latents that were made with other models or settings than those that read them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rglcd.config import Config
from rglcd.latents.format import FINGERPRINT, FORMAT_VERSION, read_fingerprint
from rglcd.stages.cache import fingerprint_of
from rglcd.stages.pretrained import Pretrained
from tests.faults.refusals import refusal_of
from tests.faults.rounds import Trial
from tests.publishing import publish
from tests.tiny_line import run, tiny_config, up_to_latents

_READERS = ("distill", "pretrain")


def _other_weights(part: str) -> Callable[[Path, random.Random], Config]:
    """One weight of the model in ``pretrained/<part>`` is another: a finetuned one, or another release."""

    def alter(root: Path, rng: random.Random) -> Config:
        (path,) = (root / "pretrained" / part).glob("*.safetensors")
        tensors = load_file(path)
        name = rng.choice(sorted(tensors))
        tensors[name] = tensors[name] + rng.uniform(1e-3, 1)
        save_file(tensors, path, metadata={"format": "pt"})
        publish(root / "pretrained", stage="prepare")
        return tiny_config()

    return alter


def _other_tokenizer(root: Path, rng: random.Random) -> Config:
    path = root / "pretrained" / "teacher" / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": rng.randint(4, 15)}))
    publish(root / "pretrained", stage="prepare")
    return tiny_config()


def _other_resolution(root: Path, rng: random.Random) -> Config:
    resolution = rng.choice([8, 32, 64])
    return tiny_config(f"model.resolution={resolution}", f"sharding.resolution={resolution}")


def _made_by_another_version(**fields: object) -> Callable[[Path, random.Random], Config]:
    """The cache is one that another version of the code has published."""

    def alter(root: Path, rng: random.Random) -> Config:
        path = root / "latents" / FINGERPRINT
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        publish(root / "latents", stage="cache")
        return tiny_config()

    return alter


_STALE: dict[str, Callable[[Path, random.Random], Config]] = {
    "another VAE": _other_weights("teacher/vae"),
    "another text encoder": _other_weights("teacher/text_encoder"),
    "another scorer": _other_weights("scorers/expert"),
    "another tokenizer": _other_tokenizer,
    "another resolution": _other_resolution,
    "another dtype": _made_by_another_version(moments_dtype="bfloat16"),
    "an older version of the code": _made_by_another_version(format_version=FORMAT_VERSION - 1),
    "a newer version of the code": _made_by_another_version(format_version=FORMAT_VERSION + 1),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that has run up to the reward model."""
    root = tmp_path_factory.mktemp("fresh")
    up_to_latents(root, tiny_config())
    run(root, tiny_config(), "pretrain")
    return root


@pytest.mark.fault(
    "F13",
    fault="latents made with another VAE, text encoder, scorer, tokenizer, resolution, dtype or version of the code",
    must="refused by pretrain and distill, showing both fingerprints and what differs",
    unit="caches",
    num_rounds=64,
    sample=range(2 * len(_STALE)),
)
def test_stale_latents_are_refused_with_both_fingerprints(trial: Trial, fresh: Path, tmp_path: Path) -> None:
    what, reader = list(_STALE)[trial.number % len(_STALE)], _READERS[trial.number // len(_STALE) % len(_READERS)]
    root = tmp_path / "stale"
    shutil.copytree(fresh, root)
    if reader == "pretrain":
        shutil.rmtree(root / "reward_model")
    config = _STALE[what](root, trial.rng())
    cached = read_fingerprint(root / "latents")
    now = fingerprint_of(config.model, Pretrained(root / "pretrained"), like=root / "latents")
    refusal = refusal_of(lambda: run(root, config, reader))
    assert refusal is not None, f"{reader} took latents of {what}"
    for digest in (cached.digest, now.digest):
        assert digest[:16] in refusal, f"{what}: {reader} does not show fingerprint {digest[:16]}: {refusal}"
    (difference,) = [line.strip() for line in refusal.splitlines() if line.startswith("  !")]
    trial.record(f"{what}: {reader} refused, fingerprints {cached.digest[:8]} and {now.digest[:8]}; {difference}")
