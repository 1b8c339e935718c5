"""How fast cached latents are read: our cache against the same content as ``.npy`` members of a tar, read by webdataset.

python -m benchmarks.reading [NUM_SAMPLES]: both in one process, in turn, on one thread; samples per CPU second, best of rounds.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from webdataset import WebDataset
from webdataset.writer import TarWriter

from rglcd.data.latents import Fingerprint, LatentBatch, LatentCache, to_columns, write_fingerprint, write_latents
from rglcd.data.manifest import Manifest, results_digest, scan, write_manifest
from rglcd.data.order import sample_indices

BATCH, ROUNDS, LATENT, TOKENS, TEXT = 32, 3, (4, 64, 64), 77, 1024


def content(num_samples: int) -> LatentBatch:
    """Random latents of Stable Diffusion 2.1's shapes at 512 pixels, with token ids and pooled text of a ViT-H."""
    draw = torch.Generator().manual_seed(0)
    mean, logvar = (torch.randn(num_samples, *LATENT, generator=draw) for _ in range(2))
    ids = torch.randint(0, 49_408, (num_samples, TOKENS), generator=draw)
    return LatentBatch(mean, logvar, ids, {"expert": torch.randn(num_samples, TEXT, generator=draw)})


def write_ours(folder: Path, batch: LatentBatch, keys: list[str]) -> None:
    folder.mkdir()
    fingerprint = Fingerprint(512, "vae", "text encoder", "tokenizer", {"expert": "weights"})
    rows = [{"key": key, "caption": "a caption"} for key in keys]
    write_latents(folder, "00000", to_columns(batch, keys), rows=rows, fingerprint=fingerprint)
    write_fingerprint(folder, fingerprint)
    files = scan(folder)
    write_manifest(folder, Manifest("latents", "cache", 1, "key", results_digest(files), {}, {}, files))


def write_tar(path: Path, batch: LatentBatch, keys: list[str]) -> None:
    moments = torch.cat([batch.mean, batch.logvar], dim=1).half().numpy()
    with path.open("wb") as stream:
        tar = TarWriter(stream, encoder=False, mtime=0)
        for row, key in enumerate(keys):
            parts = {
                "moments": moments[row],
                "ids": batch.input_ids[row].to(torch.int32).numpy(),
                "text": batch.text["expert"][row].numpy(),
            }
            members: dict[str, bytes | str] = {f"{name}.npy": as_npy(values) for name, values in parts.items()}
            tar.write({"__key__": key, "txt": b"a caption", **members})
        tar.close()


def as_npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def rate(read: Callable[[], int]) -> float:
    """Samples per CPU second, the best of the rounds."""
    rates = []
    for _ in range(ROUNDS):
        started = time.process_time()
        rates.append(read() / (time.process_time() - started))
    return max(rates)


def main() -> None:
    torch.set_num_threads(1)
    num_samples = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    keys = [f"{row:09d}" for row in range(num_samples)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        batch = content(num_samples)
        write_ours(root / "ours", batch, keys)
        write_tar(root / "0.tar", batch, keys)
        cache = LatentCache.open(root / "ours")
        cache.batch(torch.tensor([0]))  # verified and mapped: once a run, not once an epoch

        def in_order(seed: int | None) -> int:
            for start in range(0, num_samples, BATCH):
                indices = torch.arange(start, min(start + BATCH, num_samples))
                cache.batch(indices if seed is None else sample_indices(seed, num_samples, start=start, count=len(indices)))
            return num_samples

        def by_webdataset() -> int:
            batches = WebDataset(str(root / "0.tar"), shardshuffle=False).decode().batched(BATCH)
            return sum(len(rows["__key__"]) for rows in map(stacked, batches))

        def stacked(rows: dict) -> dict:
            for part in ("moments.npy", "ids.npy", "text.npy"):
                np.stack(rows[part])
            return rows

        found = {"ours, shuffled": rate(lambda: in_order(0)), "ours, in order": rate(lambda: in_order(None))}
        found["npy in tar"] = rate(by_webdataset)
        sizes = {"ours": sum(path.stat().st_size for path in (root / "ours").iterdir()), "tar": (root / "0.tar").stat().st_size}
    figures = {f"{name} (samples per CPU second)": round(value) for name, value in found.items()}
    figures |= {f"{name} (bytes a sample)": round(size / num_samples) for name, size in sizes.items()}
    print(json.dumps(figures | {"ratio, shuffled": round(found["ours, shuffled"] / found["npy in tar"], 1)}, indent=1))


if __name__ == "__main__":
    main()
