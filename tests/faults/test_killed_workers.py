"""F10: several workers at the same shards, some of them killed; then the stage is asked for as a whole."""

import multiprocessing
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rglcd.config import Config
from rglcd.stages.run import run_part
from rglcd.stages.table import SOURCE, inputs_of, stage_named
from tests.faults.compare import assert_equal_artifacts
from tests.faults.rounds import Trial
from tests.tiny_line import run, tiny_config, write_pretrained_artifact
from tests.tiny_models import RESOLUTION

_NUM_IMAGES, _ROWS_EACH = 64, 4
_STAGES = ("shard", "cache")


@dataclass(frozen=True)
class Unbroken:
    """The artifacts of one worker that nobody disturbed, and the seconds that each stage took it."""

    root: Path
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    root = tmp_path_factory.mktemp("unbroken")
    _write_source(root / "data")
    write_pretrained_artifact(root / "pretrained")
    seconds = {}
    for stage in _STAGES:
        started = time.perf_counter()
        run(root, _config(1), stage)
        seconds[stage] = time.perf_counter() - started
    return Unbroken(root, seconds)


@pytest.mark.fault(
    "F10",
    fault="two to eight workers on the same shards of shard and cache, any number of them but one killed at random",
    must="no shard published by two living workers; the whole byte-identical to an unbroken run",
    unit="rounds",
    num_rounds=50,
    sample=range(2),
)
def test_workers_share_shards_though_some_are_killed(trial: Trial, unbroken: Unbroken, tmp_path: Path) -> None:
    stage, rng = _STAGES[trial.number % 2], trial.rng()
    num_parts, num_workers = rng.randint(1, 3), rng.randint(2, 8)
    num_killed = rng.randint(1, num_workers - 1)
    config, root, log = _config(num_parts), tmp_path / "shared", tmp_path / "published.log"
    root.mkdir()
    for name in inputs_of(stage_named(stage), config):
        folder = "data" if name == SOURCE else name
        (root / folder).symlink_to(unbroken.root / folder)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(root, config, stage, index % num_parts, log)) for index in range(num_workers)]
    for worker in workers:
        worker.start()
    moments = sorted((rng.uniform(0, 1.5 * unbroken.seconds[stage]), index) for index in rng.sample(range(num_workers), num_killed))
    started = time.perf_counter()
    for moment, index in moments:
        time.sleep(max(0.0, started + moment - time.perf_counter()))
        workers[index].kill()
    for worker in workers:
        worker.join()
    killed = {index for _, index in moments}
    ends = {index: worker.exitcode for index, worker in enumerate(workers) if index not in killed}
    assert not any(ends.values()), f"{stage}: workers that nobody killed ended with {ends}"
    pids = {workers[index].pid for index in killed}
    times = Counter(name for pid, name in _published(log) if pid not in pids)
    twice = [name for name, count in times.items() if count > 1]
    assert not twice, f"{stage}: published twice: {', '.join(twice)}"
    run(root, config, stage)
    (output,) = stage_named(stage).outputs
    assert_equal_artifacts(root / output, unbroken.root / output)
    said = f"{num_workers} workers on {num_parts} part{'s' if num_parts > 1 else ''} of {stage}, {num_killed} killed"
    trial.record(f"{said}: {sum(times.values())} shards by the others, each once, the rest by the run that followed; all as unbroken")


def _config(parts: int) -> Config:
    return tiny_config(f"sharding.samples_per_shard={_ROWS_EACH}", f"sharding.parts={parts}", f"caching.parts={parts}")


def _write_source(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (_NUM_IMAGES, 4 * RESOLUTION, 4 * RESOLUTION, 3), dtype=np.uint8)
    (folder / "images").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{number:05d}.png")
    (folder / "index.tsv").write_text("".join(f"images/{number:05d}.png\tnumber {number}\n" for number in range(_NUM_IMAGES)))


def _work(root: Path, config: Config, stage_name: str, index: int, log: Path) -> None:
    """One worker: it makes its part, and notes each unit that it publishes."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).endswith("_stats.json"):
            os.write(out, f"{os.getpid()} {Path(arguments[1]).name}\n".encode())

    sys.addaudithook(note)
    stage = stage_named(stage_name)
    artifacts = {name: root / ("data" if name == SOURCE else name) for name in (*inputs_of(stage, config), *stage.outputs)}
    run_part(stage_name, {section: config.section(section) for section in stage.sections}, artifacts, index=index)


def _published(log: Path) -> list[tuple[int, str]]:
    lines = log.read_text().splitlines() if log.is_file() else []
    return [(int(pid), name) for pid, _, name in (line.partition(" ") for line in lines)]
