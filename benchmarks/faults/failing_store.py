"""F8: an object store that errs, resets, dawdles and cuts, and loses parts of uploads without a word."""

import hashlib
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import boto3

from benchmarks.faults.row import Row, Trial, require
from rglcd.errors import StateSaved
from rglcd.store.files import upload
from rglcd.store.manifest import FileEntry, read_manifest, sha256_of
from tests.object_store import CREDENTIALS, Fault, FaultProxy, open_bucket, start_object_store
from tests.tiny_line import run, tiny_config, up_to_latents, write_pretrained_artifact, write_tiny_source

_STAGES = {"shard": "shards", "cache": "latents", "pretrain": "reward_model"}
_RATE, _LOSS_RATE = 0.05, 0.01
_PART_LOSS_RATE = 0.35
_UPLOAD_BYTES = 70 << 20  # three parts
_EVERY_LINE = 5
"""Of so many rounds one is a whole line; the others are uploads in parts."""
_SLOWER, _TIMINGS = 2.0, 3


@contextmanager
def _failing_store(scratch: Path, seed: int) -> Iterator[Trial]:
    server, upstream = start_object_store()
    proxy = FaultProxy(upstream)
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": proxy.endpoint}
    try:
        with patch.dict(os.environ, environment):
            unbroken = scratch / "unbroken"
            up_to_latents(unbroken, tiny_config())
            run(unbroken, tiny_config(), "pretrain")

            def trial(number: int) -> str:
                proxy.restart(random.Random(f"{seed}/{number}").randrange(1 << 30))
                bucket = open_bucket(upstream)
                act = _line if number % _EVERY_LINE == 0 else _parts
                said = act(scratch, bucket, proxy, number)
                _empty(upstream, bucket)
                return said

            yield trial
    finally:
        proxy.close()
        server.stop()


def _line(scratch: Path, bucket: str, proxy: FaultProxy, number: int) -> str:
    """Shard, cache and pretrain, on a store that does its work and on one that fails.

    Both are timed again when the second took too long, at most three times: what else the machine does can only slow them.
    """
    ratios: list[float] = []
    while not ratios or (ratios[-1] > _SLOWER and len(ratios) < _TIMINGS):
        seconds = {
            name: _timed_line(scratch / name, f"{bucket}/{name}-{len(ratios)}", proxy, *rates)
            for name, rates in (("clean", (0.0, 0.0)), ("faulty", (_RATE, _LOSS_RATE)))
        }
        for name in seconds:
            for artifact in _STAGES.values():
                made, expected = (read_manifest(at / artifact, made_by="?").digest for at in (scratch / name, scratch / "unbroken"))
                require(made == expected, f"{artifact} differs from an unbroken run's")
        ratios.append(seconds["faulty"] / seconds["clean"])
    damaged = _damaged(bucket, proxy)
    require(not damaged, f"objects that are not what their address says: {', '.join(damaged[:3])}")
    faults = {name: count for name, count in proxy.seen.items() if name != "requests"}
    said = f"the line: {proxy.seen['requests']} requests, faults {faults}; digests equal, all objects whole"
    times = ", then ".join(f"{ratio:.2f}" for ratio in ratios)
    require(ratios[-1] <= _SLOWER, f"{said}; took {times} times as long")
    return f"{said}; {times} times as long"


def _timed_line(root: Path, store: str, proxy: FaultProxy, rate: float, loss_rate: float) -> float:
    """The seconds that the stages take with their artifacts in ``store``."""
    shutil.rmtree(root, ignore_errors=True)
    write_tiny_source(root / "data")
    write_pretrained_artifact(root / "pretrained")
    with patch.dict(os.environ, {"RGLCD_STORE": store}):
        proxy.rate, proxy.loss_rate = rate, loss_rate
        started = time.perf_counter()
        for stage in _STAGES:
            run(root, tiny_config(), stage)
            shutil.rmtree(root / ".cache", ignore_errors=True)  # so that the next stage reads the store
        seconds = time.perf_counter() - started
        proxy.rate = proxy.loss_rate = 0.0
    return seconds


def _damaged(bucket: str, proxy: FaultProxy) -> list[str]:
    """Objects whose bytes are not those that their address names."""
    client, name = boto3.client("s3", endpoint_url=proxy.upstream), bucket.removeprefix("s3://")
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", ()):
            parts = item["Key"].split("/")
            if "files" in parts:
                body = client.get_object(Bucket=name, Key=item["Key"])["Body"].read()
                if hashlib.sha256(body).hexdigest() != parts[parts.index("files") + 1]:
                    found.append(item["Key"])
    return found


def _parts(scratch: Path, bucket: str, proxy: FaultProxy, number: int) -> str:
    """One file in three parts, of which any may be lost without a word."""
    path = scratch / "large.bin"
    path.write_bytes(random.Random(number).randbytes(1 << 20) * (_UPLOAD_BYTES >> 20))
    entry, uri = FileEntry(sha256_of(path), path.stat().st_size), f"{bucket}/large.bin"
    proxy.loss_rate = _PART_LOSS_RATE
    try:
        upload(path, uri, entry)
        ended = "whole"
    except StateSaved:
        ended = "told"
    proxy.loss_rate = 0.0
    body = boto3.client("s3", endpoint_url=proxy.upstream).get_object(Bucket=bucket.removeprefix("s3://"), Key="large.bin")["Body"].read()
    is_whole = hashlib.sha256(body).hexdigest() == entry.sha256
    require(is_whole or ended == "told", "a part was lost, and the upload counted as done")
    ended = "it stood whole" if is_whole else "it was told"
    return f"70 MiB in parts: {proxy.seen[Fault.LOST_PART.value]} parts lost, all found; in the end {ended}"


def _empty(upstream: str, bucket: str) -> None:
    client, name = boto3.client("s3", endpoint_url=upstream), bucket.removeprefix("s3://")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=name, Key=item["Key"])


FAILING_STORE = Row(
    name="F8",
    fault="an S3 store: 5 % of requests end in 500, 503, a reset, a pause or half a body, 1 % of uploads lose a part without a word; "
    "of files in parts, 35 % of the parts",
    must="shard, cache and pretrain end in the digests of folders, every object is what its address says, in at most twice the time "
    "(timed at most three times); every lost part found",
    unit="rounds",
    num_rounds=100,
    sample=range(1),
    open=_failing_store,
)
