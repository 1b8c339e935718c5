"""F8: an object store that answers with errors, resets, pauses and half bodies, and silently loses parts of uploads."""

import hashlib
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from rglcd.errors import TryAgain
from rglcd.store.files import upload
from rglcd.store.manifest import FileEntry, read_manifest, sha256_of
from tests.faults.rounds import Trial
from tests.object_store import CREDENTIALS, Fault, FaultProxy, open_bucket
from tests.tiny_line import run, tiny_config, up_to_latents, write_pretrained_artifact, write_tiny_source

_STAGES = {"shard": "shards", "cache": "latents", "pretrain": "reward_model"}
_RATE, _LOSS_RATE = 0.05, 0.01
_PART_LOSS_RATE = 0.35
_UPLOAD_BYTES = 70 << 20  # three parts
_EVERY_PIPELINE = 5
"""Of so many rounds one is the whole pipeline; the others are uploads in parts."""
_SLOWER, _TIMINGS = 2.0, 3


@dataclass(frozen=True)
class FailingStore:
    """The proxy that injects faults, a bucket behind it, and the artifacts that folders hold without any fault."""

    proxy: FaultProxy
    bucket: str
    unbroken: Path


@pytest.fixture(scope="module")
def proxy_and_unbroken(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultProxy, Path]]:
    proxy, unbroken = FaultProxy(s3_endpoint), tmp_path_factory.mktemp("unbroken")
    up_to_latents(unbroken, tiny_config())
    run(unbroken, tiny_config(), "pretrain")
    yield proxy, unbroken
    proxy.close()


@pytest.fixture
def failing_store(
    trial: Trial, proxy_and_unbroken: tuple[FaultProxy, Path], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FailingStore]:
    """An empty bucket behind the proxy, whose faults are those of the round."""
    proxy, unbroken = proxy_and_unbroken
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    proxy.restart(trial.rng().randrange(1 << 30))
    bucket = open_bucket(s3_endpoint)
    yield FailingStore(proxy, bucket, unbroken)
    _empty(s3_endpoint, bucket)


@pytest.mark.fault(
    "F8",
    fault="an S3 store: 5 % of requests end in 500, 503, a reset, a pause or half a body, 1 % of uploads lose a part without a word; "
    "of files in parts, 35 % of the parts",
    must="shard, cache and pretrain end in the digests of folders, every object is what its address says, in at most twice the time "
    "(timed at most three times); every lost part found",
    unit="rounds",
    num_rounds=100,
    sample=range(1),
)
def test_failing_store_costs_time_but_no_byte(
    trial: Trial, failing_store: FailingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trial.number % _EVERY_PIPELINE == 0:
        trial.record(_run_pipeline(failing_store, tmp_path, monkeypatch))
    else:
        trial.record(_upload_in_parts(failing_store, tmp_path, trial.number))


def _run_pipeline(store: FailingStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Shard, cache and pretrain, on a store that does its work and on one that fails.

    Both are timed again when the second took too long, at most three times: what else the machine does can only slow them.
    """
    proxy, ratios = store.proxy, list[float]()
    while not ratios or (ratios[-1] > _SLOWER and len(ratios) < _TIMINGS):
        seconds = {}
        for name, rates in (("clean", (0.0, 0.0)), ("faulty", (_RATE, _LOSS_RATE))):
            monkeypatch.setenv("RGLCD_STORE", f"{store.bucket}/{name}-{len(ratios)}")
            seconds[name] = _timed_pipeline(folder / name, proxy, *rates)
            monkeypatch.delenv("RGLCD_STORE")
        for name in seconds:
            for artifact in _STAGES.values():
                made, expected = (read_manifest(at / artifact, made_by="?").digest for at in (folder / name, store.unbroken))
                assert made == expected, f"{artifact} differs from an unbroken run's"
        ratios.append(seconds["faulty"] / seconds["clean"])
    damaged = _damaged(store.bucket, proxy)
    assert not damaged, f"objects that are not what their address says: {', '.join(damaged[:3])}"
    faults = {name: count for name, count in proxy.seen.items() if name != "requests"}
    said = f"the pipeline: {proxy.seen['requests']} requests, faults {faults}; digests equal, all objects whole"
    times = ", then ".join(f"{ratio:.2f}" for ratio in ratios)
    assert ratios[-1] <= _SLOWER, f"{said}; took {times} times as long"
    return f"{said}; {times} times as long"


def _timed_pipeline(root: Path, proxy: FaultProxy, rate: float, loss_rate: float) -> float:
    """The seconds that the stages take with their artifacts in the store."""
    shutil.rmtree(root, ignore_errors=True)
    write_tiny_source(root / "data")
    write_pretrained_artifact(root / "pretrained")
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
    for key in _keys(client, name):
        parts = key.split("/")
        if "files" in parts:
            body = client.get_object(Bucket=name, Key=key)["Body"].read()
            if hashlib.sha256(body).hexdigest() != parts[parts.index("files") + 1]:
                found.append(key)
    return found


def _upload_in_parts(store: FailingStore, folder: Path, number: int) -> str:
    """One file in three parts, of which any may be lost without a word."""
    path, proxy = folder / "large.bin", store.proxy
    path.write_bytes(random.Random(number).randbytes(1 << 20) * (_UPLOAD_BYTES >> 20))
    entry = FileEntry(sha256_of(path), path.stat().st_size)
    proxy.loss_rate = _PART_LOSS_RATE
    try:
        upload(path, f"{store.bucket}/large.bin", entry)
        reported_loss = False
    except TryAgain:
        reported_loss = True
    proxy.loss_rate = 0.0
    client = boto3.client("s3", endpoint_url=proxy.upstream)
    body = client.get_object(Bucket=store.bucket.removeprefix("s3://"), Key="large.bin")["Body"].read()
    is_whole = hashlib.sha256(body).hexdigest() == entry.sha256
    assert is_whole or reported_loss, "a part was lost, and the upload counted as done"
    ended = "it stood whole" if is_whole else "the loss was reported"
    return f"70 MiB in parts: {proxy.seen[Fault.LOST_PART.value]} parts lost, all found; in the end {ended}"


def _empty(upstream: str, bucket: str) -> None:
    client, name = boto3.client("s3", endpoint_url=upstream), bucket.removeprefix("s3://")
    for key in list(_keys(client, name)):
        client.delete_object(Bucket=name, Key=key)


def _keys(client: Any, bucket: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", ()):
            yield item["Key"]
