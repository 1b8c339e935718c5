"""F13: latents that were made with something else than what reads them."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.faults.row import CriterionMissed, Row, Trial, require
from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.latents.cache import FINGERPRINT, FORMAT_VERSION, read_fingerprint
from rglcd.stages.cache import fingerprint_of
from rglcd.stages.pretrained import Pretrained
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


@contextmanager
def _stale(scratch: Path, seed: int) -> Iterator[Trial]:
    line = scratch / "line"
    up_to_latents(line, tiny_config())
    run(line, tiny_config(), "pretrain")

    def trial(number: int) -> str:
        what, reader = list(_STALE)[number % len(_STALE)], _READERS[number // len(_STALE) % len(_READERS)]
        root = scratch / "stale"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(line, root)
        if reader == "pretrain":
            shutil.rmtree(root / "reward_model")
        config = _STALE[what](root, random.Random(f"{seed}/{number}"))
        cached = read_fingerprint(root / "latents")
        now = fingerprint_of(config.model, Pretrained(root / "pretrained"), like=root / "latents")
        try:
            run(root, config, reader)
        except InputError as refused:
            said = str(refused)
        else:
            raise CriterionMissed(f"{reader} took latents of {what}")
        for digest in (cached.digest, now.digest):
            require(digest[:16] in said, f"{what}: {reader} does not show fingerprint {digest[:16]}: {said}")
        (line_of_it,) = [line.strip() for line in said.splitlines() if line.startswith("  !")]
        return f"{what}: {reader} refused, fingerprints {cached.digest[:8]} and {now.digest[:8]}; {line_of_it}"

    yield trial


STALE_CACHE = Row(
    name="F13",
    fault="latents made with another VAE, text encoder, scorer, tokenizer, resolution, dtype or version of the code",
    must="refused by pretrain and distill, showing both fingerprints and what differs",
    unit="caches",
    num_rounds=64,
    sample=range(2 * len(_STALE)),
    open=_stale,
)
