"""Latent caches of given columns, written and published as the stage does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rglcd.latents.cache import LatentCache
from rglcd.latents.format import Fingerprint, write_fingerprint, write_latents
from tests.publishing import publish


def write_cache(folder: Path, columns: Mapping[str, Tensor], *, scorers: Sequence[str] = ()) -> LatentCache:
    """A cache of one shard with ``columns``; every caption is empty."""
    folder.mkdir(parents=True)
    fingerprint = Fingerprint(16, "vae", "text encoder", "tokenizer", dict.fromkeys(scorers, "weights"))
    num_samples = len(columns["latent_mean"])
    rows = [{"key": f"{row:09d}", "caption": ""} for row in range(num_samples)]
    write_latents(folder, "00000", columns, rows=rows, fingerprint=fingerprint)
    write_fingerprint(folder, fingerprint)
    return LatentCache.open(publish(folder, stage="cache"))
