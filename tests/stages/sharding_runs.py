"""Runs of the stage ``shard`` on small sources, and what they leave in their folder."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rglcd import progress
from rglcd.config import Sharding
from rglcd.sharding.shards import Sample, read_shard, shard_entries
from rglcd.stages.run import Output, run_stage
from rglcd.stages.shard import shard
from rglcd.store.manifest import Manifest, results_digest, scan, write_manifest

SHARDING = Sharding(resolution=8, image_format="png", samples_per_shard=4)


def write_source(folder: Path, *, num_images: int) -> Path:
    """A source folder of ``num_images`` drawings, one row of each of three faults after the second."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(num_images):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:05d}.png")
        rows.append(f"images/{number:05d}.png\tcaption {number}")
    rows[2:2] = ["https://example.com/a.jpg\tfar away", "images/none.png\tnowhere", "images/00000.png\t "]
    (folder / "index.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def run(source: Path, folder: Path, sharding: Sharding = SHARDING) -> Mapping[str, Any]:
    folder.mkdir(exist_ok=True)
    return shard(sharding, source=source, shards=Output(folder, None))


def files_after_run(source: Path, folder: Path, sharding: Sharding = SHARDING) -> dict[str, bytes]:
    run(source, folder, sharding)
    return files_of(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples_of(folder: Path) -> list[Sample]:
    files = scan(folder)
    write_manifest(folder, Manifest("shards", "shard", 1, "key", results_digest(files), {}, {}, files))
    return [sample for entry in shard_entries(folder) for sample in read_shard(folder / entry.name, entry)]


def run_until_killed(sections: dict[str, Sharding], artifacts: dict[str, Path], *, rows_before_kill: int) -> int:
    """Run the stage in a process of its own, SIGKILL it when it has reported so many rows, and return its exit code."""
    reports, at_child = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        with progress.reporting_to(lambda event: at_child.send(event.done)):
            run_stage("shard", sections, artifacts)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    at_child.close()
    try:
        while reports.recv() < rows_before_kill:
            pass
    except EOFError:
        raise AssertionError("the stage ended before it was killed") from None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode or 0
