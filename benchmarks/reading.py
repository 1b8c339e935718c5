"""How fast cached latents are read: our cache against the same content as ``.npy`` members of tars, read by webdataset.

python -m benchmarks.reading [NUM_SAMPLES]: both in one process, in turn, on one thread; samples per CPU second, best of rounds.

Counted is everything from the files, which are in the page cache, to one contiguous tensor a column in the type that it is stored in:
what a step sends to its device. Ours is verified and mapped before, as once a run; webdataset verifies nothing.

Beside it: a first epoch from an S3 API on loopback into an empty local cache, every file fetched, verified and mapped on the way,
in samples per second of the clock; and how many samples a second the plainest step of Stable Diffusion 2.1 could take.
"""

import argparse
import io
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from webdataset import WebDataset
from webdataset.writer import TarWriter

from benchmarks.step_bench import sd21_sizes
from rglcd.latents.cache import LatentCache
from rglcd.latents.format import Fingerprint, LatentBatch, StoredBatch, to_columns, write_fingerprint, write_latents
from rglcd.latents.order import sample_indices
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.artifacts import ArtifactLocation
from rglcd.store.local_cache import pinned
from rglcd.store.local_copies import fetch_files
from rglcd.store.manifest import Manifest, read_manifest, results_digest, scan, write_manifest
from rglcd.training.operations import count_flops

BATCH, ROUNDS, SHARD = 32, 5, 512
LATENT, TOKENS, TEXT = (4, 64, 64), 77, 1024
PARTS = ("moments.npy", "ids.npy", "text.npy")
A100_FLOPS = 312e12
"""Dense bfloat16 operations a second of NVIDIA's A100, by its data sheet: no step there is faster."""
PASSES = 6
"""Of the UNet, for a sample of a plain step: the student's, twice that for its gradient, the target's, the teacher's two halves."""


def content(num_samples: int, *, seed: int) -> LatentBatch:
    """Random latents of Stable Diffusion 2.1's shapes at 512 pixels, with token ids and pooled text of a ViT-H."""
    draw = torch.Generator().manual_seed(seed)
    mean, logvar = (torch.randn(num_samples, *LATENT, generator=draw) for _ in range(2))
    ids = torch.randint(0, 49_408, (num_samples, TOKENS), generator=draw)
    return LatentBatch(mean, logvar, ids, {"expert": torch.randn(num_samples, TEXT, generator=draw)})


def write_both(root: Path, num_samples: int) -> LatentCache:
    """The same samples as ``ours/`` and as ``tars/``, in shards of the same sizes."""
    fingerprint = Fingerprint(512, "vae", "text encoder", "tokenizer", {"expert": "weights"})
    ours, tars = root / "ours", root / "tars"
    ours.mkdir()
    tars.mkdir()
    for number, start in enumerate(range(0, num_samples, SHARD)):
        keys = [f"{row:09d}" for row in range(start, min(start + SHARD, num_samples))]
        batch = content(len(keys), seed=number)
        rows = [{"key": key, "caption": "a caption"} for key in keys]
        write_latents(ours, f"{number:05d}", to_columns(batch, keys), rows=rows, fingerprint=fingerprint)
        write_tar(tars / f"{number:05d}.tar", batch, keys)
    write_fingerprint(ours, fingerprint)
    files = scan(ours)
    write_manifest(ours, Manifest("latents", "cache", 1, "key", results_digest(files), {}, {}, files))
    cache = LatentCache.open(ours)
    cache.stored(torch.arange(0, num_samples, SHARD))  # a row of each shard: all are verified and mapped
    return cache


def write_tar(path: Path, batch: LatentBatch, keys: list[str]) -> None:
    moments = torch.cat([batch.mean, batch.logvar], dim=1).half().numpy()
    with path.open("wb") as stream:
        tar = TarWriter(stream, encoder=False, mtime=0)
        for row, key in enumerate(keys):
            parts = (moments[row], batch.input_ids[row].to(torch.int32).numpy(), batch.text["expert"][row].numpy())
            tar.write({"__key__": key, "txt": b"a caption", **dict(zip(PARTS, map(as_npy, parts), strict=True))})
        tar.close()


def as_npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def ours(cache: LatentCache, seed: int | None) -> Iterator[StoredBatch]:
    """An epoch in order, or in the order that a run with ``seed`` has."""
    for start in range(0, len(cache), BATCH):
        count = min(BATCH, len(cache) - start)
        indices = torch.arange(start, start + count) if seed is None else sample_indices(seed, len(cache), start=start, count=count)
        yield cache.stored(indices)


def by_webdataset(tars: list[str]) -> Iterator[list[Tensor]]:
    """An epoch in order: webdataset shuffles in a buffer, which costs more."""
    for rows in WebDataset(tars, shardshuffle=False).decode().batched(BATCH):
        yield [torch.from_numpy(np.stack(rows[part])) for part in PARTS]


Epoch = Callable[[], Iterator[object]]


def rates(epochs: Mapping[str, Epoch], num_samples: int) -> dict[str, float]:
    """Samples per CPU second of each, the best of rounds that they run in turn."""
    found = dict.fromkeys(epochs, 0.0)
    for _ in range(ROUNDS):
        for name, epoch in epochs.items():
            started, num_batches = time.process_time(), 0
            for batch in epoch():
                num_batches += 1
                del batch  # before the next is read, as in a step
            found[name] = max(found[name], num_samples / (time.process_time() - started))
            assert num_batches == -(-num_samples // BATCH)
    return found


def copies(source: np.ndarray) -> Iterator[None]:
    """A bare copy of as many bytes, each batch from another place in memory to the same: no reader that copies can be faster."""
    target = np.ones((BATCH, source.shape[1]), np.uint8)
    for start in range(0, len(source), BATCH):
        rows = source[start : start + BATCH]
        np.copyto(target[: len(rows)], rows)
        yield


def appetite() -> float:
    """Samples a second that an A100 could at most take in plain distillation of SD 2.1 at 512 pixels."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(sd21_sizes().unet)
        z_t, t, text = torch.empty(1, *LATENT), torch.zeros(1, dtype=torch.int64), torch.empty(1, TOKENS, 1024)
        return A100_FLOPS / (PASSES * count_flops(lambda: unet(z_t, t, text)))


def from_store(folder: Path, scratch: Path) -> float:
    """Samples a second of a first epoch in shuffled order, the cache of ``folder`` lying in an object store."""
    with object_store() as bucket:
        manifest = ArtifactStore(f"{bucket}/latents").publish(folder, read_manifest(folder, made_by="cache"))
        copy = ArtifactLocation(scratch / "latents", manifest.store).readable(manifest)
        started = time.perf_counter()
        with pinned(copy):
            fetch_files(copy, manifest, wanted=lambda name: name.endswith(".json"))
            cache = LatentCache.open(copy)
            cache.anticipate(sample_indices(0, len(cache), start=0, count=len(cache)))
            num_samples = sum(len(batch.columns["latent_mean"]) for batch in ours(cache, 0))
        return num_samples / (time.perf_counter() - started)


@contextmanager
def object_store() -> Iterator[str]:
    """A bucket of an S3 API in a process of its own; the environment says where."""
    import boto3

    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    names = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= names | {"AWS_ENDPOINT_URL": here.recv()}
    boto3.client("s3").create_bucket(Bucket="benchmark")
    yield "s3://benchmark"
    server.terminate()


def serve(ready: Connection) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    ready.send(f"http://{host}:{port}")
    time.sleep(3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_samples", type=int, nargs="?", default=4096)
    num_samples = parser.parse_args().num_samples
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cache = write_both(root, num_samples)
        tars = sorted(map(str, (root / "tars").iterdir()))
        row = sum(column.nbytes for column in cache.stored(torch.tensor([0])).columns.values())
        source = np.ones((num_samples, row), np.uint8)
        found = rates(
            {
                "ours, shuffled": lambda: ours(cache, 0),
                "ours, in order": lambda: ours(cache, None),
                "npy in tar, in order": lambda: by_webdataset(tars),
                "ours, shuffled, and decoded on this CPU": lambda: (batch.decoded() for batch in ours(cache, 0)),
                "a bare copy of our bytes": lambda: copies(source),
            },
            num_samples,
        )
        streamed = from_store(root / "ours", root)
        sizes = {folder: sum(path.stat().st_size for path in (root / folder).iterdir()) / num_samples for folder in ("ours", "tars")}
    figures: dict[str, float] = {f"{name} (samples per CPU second)": round(value) for name, value in found.items()}
    figures |= {f"{name} (bytes a sample)": round(size) for name, size in sizes.items()}
    others = ("ours, shuffled", "ours, in order", "a bare copy of our bytes")
    figures |= {f"{name}: times the npy rate": round(found[name] / found["npy in tar, in order"], 1) for name in others}
    figures |= {"from S3 on loopback, first epoch (samples per second)": round(streamed)}
    figures |= {"an A100 takes at most (samples per second)": round(appetite())}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
