"""F22 to F24: results that live by key. A crash while one moves, two runs at once, and four ranks beside a rival run."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from rglcd.config import Config
from rglcd.stages.run import assist_stage, run_stage
from rglcd.stages.table import SOURCE, inputs_of, stage_named
from rglcd.store.artifacts import at_key
from rglcd.store.manifest import altered_files, read_manifest
from rglcd.store.places import Places
from tests.cluster.control_plane import free_port
from tests.faults.compare import assert_equal_artifacts, files_of
from tests.faults.rounds import Trial
from tests.tiny_line import run, tiny_config, write_pretrained_artifact, write_tiny_source

_RUNS = tuple(tiny_config(f"sharding.samples_per_shard={rows}", "caching.parts=2") for rows in (5, 4, 3))
_STAGES = ("shard", "cache")
_MOST_OPERATIONS = 12
"""More than a move has: the rounds of the others are those of a crash after it."""


@dataclass(frozen=True)
class Lines:
    """The artifacts up to the latents of each of three configurations, by itself, and the keys of their shards."""

    roots: tuple[Path, ...]

    def key(self, number: int, artifact: str) -> str:
        return read_manifest(self.roots[number] / artifact, made_by="?").key


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    roots = []
    for config in _RUNS:
        root = tmp_path_factory.mktemp("line")
        _write_inputs(root)
        for stage in _STAGES:
            run(root, config, stage)
        roots.append(root)
    return Lines(tuple(roots))


@pytest.mark.fault(
    "F22",
    fault="SIGKILL at each file operation by which a result is published, or an earlier one put back, while another is in force",
    must="the same command puts its result in force; each of the three results is there, byte-identical",
    unit="crashes",
    num_rounds=2 * _MOST_OPERATIONS,
    sample=range(2 * _MOST_OPERATIONS),
)
def test_a_crash_while_a_result_moves_loses_none(trial: Trial, lines: Lines, tmp_path: Path) -> None:
    kind, operation = ("published", "put back")[trial.number % 2], trial.number // 2
    _write_inputs(tmp_path)
    places = Places(tmp_path / "shards")
    asked = 2 if kind == "published" else 1
    at = (tmp_path / "shards", places.kept(lines.key(1, "shards")), places.work(lines.key(2, "shards")))
    for root, place in zip(lines.roots, at, strict=True):
        shutil.copytree(root / "shards", place)
    died = _in_processes([lambda: _run_dying_at(operation, tmp_path, _RUNS[asked])]) == [-signal.SIGKILL]
    assert run(tmp_path, _RUNS[asked], "shard").was_done, f"{kind}, killed at operation {operation}: the work was done again"
    assert files_of(tmp_path / "shards") == files_of(lines.roots[asked] / "shards"), f"{kind}, killed at operation {operation}"
    for number in range(len(_RUNS)):
        found = list(places.results(lines.key(number, "shards")))
        missing = f"{kind}, killed at operation {operation}: the shards of run {number} are gone"
        whole = [folder for folder, manifest in found if not altered_files(folder, manifest)]
        assert whole or (number == 2 and kind != "published" and (at[2] / "manifest.json").is_file()), missing
    trial.record(f"{kind}, {'killed at' if died else 'whole before'} operation {operation}: in force by the same command, all three there")


def _run_dying_at(operation: int, root: Path, config: Config) -> None:
    """The stage ``shard``, killed before the so-many-th change of a name or flush to disk that moving its result takes."""
    done, move = [0], Places.put_in_force

    def counting(act: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            if done[0] == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            done[0] += 1
            return act(*arguments, **named)

        return counted

    def watched(places: Places, folder: Path) -> None:
        for name in ("rename", "replace", "mkdir", "unlink"):
            setattr(os, name, counting(getattr(os, name)))
        move(places, folder)

    Places.put_in_force = watched  # type: ignore[method-assign]
    run(root, config, "shard")


@pytest.mark.fault(
    "F23",
    fault="two runs of different settings at once, up to the latents, in one folder or in one store",
    must="each reads what it made itself: the digests of two runs that never met; no work is left, and both results are there",
    unit="pairs",
    num_rounds=40,
    sample=range(2),
)
def test_two_runs_at_once_do_not_meet(trial: Trial, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, rng = ("folder", "store")[trial.number % 2], trial.rng()
    if place == "store":
        monkeypatch.setenv("RGLCD_STORE", f"file://{tmp_path}/store")
    _write_inputs(tmp_path)
    late = rng.uniform(0, 0.5)
    pair = [lambda: _run_by_key(tmp_path, _RUNS[0], wait=0.0), lambda: _run_by_key(tmp_path, _RUNS[1], wait=late)]
    assert _in_processes(pair) == [0, 0], f"in one {place}: a run failed"
    for number in range(2):
        for stage in _STAGES:
            (output,) = stage_named(stage).outputs
            found = dict(Places(tmp_path / output).results(lines.key(number, output)))
            digests = {manifest.digest for manifest in found.values()}
            assert digests == {read_manifest(lines.roots[number] / output, made_by="?").digest}, f"in one {place}: {output} of run {number}"
    assert _left_in_work(tmp_path) == []
    trial.record(f"two runs in one {place}, the second {late:.2f} s later: each as if alone")


@pytest.mark.fault(
    "F24",
    fault="four ranks that encode latents, and a rival run of other settings in the same folder meanwhile",
    must="latents of four undisturbed ranks, byte-identical, and the rival's own; no rank removes what it did not make",
    unit="rounds",
    num_rounds=20,
    sample=(0,),
)
def test_four_ranks_finish_beside_a_rival_run(trial: Trial, lines: Lines, tmp_path: Path) -> None:
    late = trial.rng().uniform(0, 0.5)
    _write_inputs(tmp_path)
    ours = run(tmp_path, _RUNS[0], "shard")
    port = free_port()
    ranks = [lambda rank=rank: _rank(tmp_path, ours.manifest.key, rank=rank, port=port) for rank in range(4)]
    ends = _in_processes([*ranks, lambda: _run_by_key(tmp_path, _RUNS[1], wait=late)])
    assert ends == [0] * 5, f"ranks and rival ended with {ends}"
    for number in range(2):
        ((folder, _),) = Places(tmp_path / "latents").results(lines.key(number, "latents"))
        assert_equal_artifacts(folder, lines.roots[number] / "latents")
    assert _left_in_work(tmp_path) == []
    trial.record(f"a rival that began {late:.2f} s after four ranks: both latents as if alone")


def _write_inputs(root: Path) -> None:
    write_tiny_source(root / "data")
    write_pretrained_artifact(root / "pretrained")


def _run_by_key(root: Path, config: Config, *, wait: float) -> None:
    """As `rglcd run all` does: each stage reads, by key, what this run made."""
    time.sleep(wait)
    made: dict[str, Path | str] = {}
    for name in _STAGES:
        stage = stage_named(name)
        places = {artifact: root / ("data" if artifact == SOURCE else artifact) for artifact in (*inputs_of(stage, config), *stage.outputs)}
        outcome = run_stage(name, {section: config.section(section) for section in stage.sections}, places | made)
        (output,) = stage.outputs
        made[output] = at_key(places[output], outcome.manifest.key)


def _rank(root: Path, shards: str, *, rank: int, port: int) -> None:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()} | {"TORCHELASTIC_RUN_ID": "four"})  # as torchrun does
    places = {"shards": at_key(root / "shards", shards), "pretrained": root / "pretrained", "latents": root / "latents"}
    sections = {name: _RUNS[0].section(name) for name in stage_named("cache").sections}
    (run_stage if rank == 0 else assist_stage)("cache", sections, places)


def _in_processes(acts: Sequence[Callable[[], None]]) -> list[int | None]:
    """Each of ``acts`` in a process of its own, all at once; their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=act) for act in acts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    return [process.exitcode for process in processes]


def _left_in_work(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".work").iterdir() if path.suffix != ".moving")
