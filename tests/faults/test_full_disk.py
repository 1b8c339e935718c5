"""F9: no disk space at a random write: a disk that is full, or a limit on the size of a file."""

import ctypes
import os
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rglcd.config import Config
from rglcd.errors import TryAgain
from rglcd.stages.table import SOURCE, stage_named
from rglcd.store.manifest import read_verified
from tests.faults.compare import assert_equal_artifacts
from tests.faults.rounds import Trial
from tests.faults.watched_process import run_forked
from tests.publishing import publish
from tests.sharding.hostile_server import OPEN, HostileServer
from tests.tiny_line import (
    NUM_IMAGES,
    TINY_EVALUATION,
    run,
    tiny_config,
    write_pretrained_artifact,
    write_tiny_evaluation_data,
    write_tiny_features,
    write_tiny_source,
)

_STAGES = ("shard", "shard, from the web", "cache", "pretrain", "distill", "evaluate")
_OVERRIDES = {
    "shard": "sharding.max_rows=7",
    "cache": "caching.text_embeddings=true",
    "pretrain": "pretraining.seed=1",
    "distill": "distillation.seed=1",
    "evaluate": "evaluation.seed=1",
}
"""What the good state that must survive was made with."""
_TRIES = 12
_ENOUGH = 256 << 20


@dataclass
class Pipelines:
    """The tiny pipeline without a fault, and one of an older configuration: each stage made when it is first wanted."""

    folder: Path
    _made: set[str] = field(default_factory=set)

    @property
    def tiny(self) -> Path:
        return self.folder / "unbroken"

    @property
    def older(self) -> Path:
        return self.folder / "older"

    def write_inputs(self, server: HostileServer) -> None:
        """What all stages read: a source folder, one whose images are urls, and the pretrained models."""
        write_tiny_source(self.tiny / "data")
        write_tiny_evaluation_data(self.tiny / "data")
        write_pretrained_artifact(self.tiny / "pretrained")
        write_tiny_features(self.tiny / "pretrained" / "features")
        publish(self.tiny / "pretrained", stage="prepare")
        (self.tiny / "web").mkdir()
        rows = [f"{server.url(f'image/{seed}')}\tcaption {seed}\n" for seed in range(NUM_IMAGES)]
        (self.tiny / "web" / "index.tsv").write_text("".join(rows))

    def unbroken(self, what: str) -> Path:
        """The artifact that ``what`` makes when there is space; the older one of its stage is made too."""
        stage = what.partition(",")[0]
        for each, override in _OVERRIDES.items():
            if stage in self._made:
                break
            if each not in self._made:
                run(self.tiny, _config(each, self.tiny), each)
                self.link_inputs(self.older, each)
                run(self.older, tiny_config(*TINY_EVALUATION, override), each)
                self._made.add(each)
        if what == stage:
            return self.tiny / _output_of(what)
        if what not in self._made:  # what comes from the web has bytes of its own
            self.link_inputs(self.folder / "web", what)
            run(self.folder / "web", _config(what, self.folder / "web"), stage)
            self._made.add(what)
        return self.folder / "web" / _output_of(what)

    def link_inputs(self, place: Path, what: str) -> None:
        """Let ``place`` have what ``what`` reads."""
        place.mkdir(exist_ok=True)
        stage, _, of_the_web = what.partition(",")
        for name in stage_named(stage).inputs:
            link = place / ("data" if name == SOURCE else name)
            if not link.exists():
                link.symlink_to(self.tiny / ("web" if of_the_web else "data") if name == SOURCE else self.tiny / name)


def _output_of(what: str) -> str:
    return stage_named(what.partition(",")[0]).outputs[0]


def _config(what: str, place: Path) -> Config:
    if "," not in what:
        return tiny_config(*TINY_EVALUATION)
    return tiny_config(f"sharding.download={{kind: web, store: {place / 'store'}, allowed_networks: ['{OPEN}/32']}}")


class _FileSize:
    """A limit on the size of any one file, as a quota or a job's ulimit sets it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def taken_by(self, sizes: Sequence[int]) -> int:
        return max(sizes)

    def set(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def said(self, size: int) -> str:
        return f"no file may be larger than {size:,} bytes"


class _Disk:
    """A disk of memory on ``place``, for this process alone, of which a given number of bytes are left free."""

    _NEW_NAMESPACE, _NEW_USER, _REMOUNT, _PRIVATE, _RECURSIVE = 0x20000, 0x10000000, 32, 1 << 18, 1 << 14

    def __init__(self, place: Path) -> None:
        self._libc, self.place = ctypes.CDLL(None, use_errno=True), place
        user, group = os.getuid(), os.getgid()
        self._call("unshare", self._NEW_NAMESPACE | (0 if user == 0 else self._NEW_USER))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        self._call("mount", b"none", b"/", None, self._PRIVATE | self._RECURSIVE, None)
        self._mount(_ENOUGH, 0)

    def taken_by(self, sizes: Sequence[int]) -> int:
        return sum(sizes)

    def set(self, size: int) -> None:
        status = os.statvfs(self.place)
        self._mount((status.f_blocks - status.f_bfree) * status.f_frsize + size, self._REMOUNT)

    def lift(self) -> None:
        self._mount(_ENOUGH, self._REMOUNT)

    def said(self, size: int) -> str:
        return f"a disk with {size:,} bytes left"

    def _mount(self, size: int, flags: int) -> None:
        self._call("mount", b"none", str(self.place).encode(), b"tmpfs", flags, f"size={size}".encode())

    def _call(self, function: str, *arguments: object) -> None:
        if getattr(self._libc, function)(*arguments) != 0:
            number = ctypes.get_errno()
            raise PermissionError(number, f"a disk of memory cannot be mounted here: {function}: {os.strerror(number)}")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipelines]:
    pipelines = Pipelines(tmp_path_factory.mktemp("pipelines"))
    with HostileServer() as server:
        pipelines.write_inputs(server)
        yield pipelines


@pytest.mark.fault(
    "F9",
    fault="no disk space left at a random write of shard (local and from the web), cache, pretrain, distill, evaluate: half a full disk, "
    "half a limit on file sizes",
    must="exit code 75 with the bytes wanted and free; the artifact before intact; with space, the same command ends byte-identical",
    unit="writes",
    num_rounds=50,
    sample=range(3),
)
def test_stage_on_full_disk_says_so_and_goes_on_with_space(trial: Trial, pipelines: Pipelines, tmp_path: Path) -> None:
    what, rng = _STAGES[trial.number % len(_STAGES)], trial.rng()
    whole = pipelines.unbroken(what)
    limit, share = (_FileSize, _Disk)[trial.number // len(_STAGES) % 2], rng.uniform(0.02, 0.98)
    ended = run_forked(lambda: _fill_and_go_on(pipelines, what, whole, limit(tmp_path), share=share), timeout=300)
    if isinstance(ended.error, AssertionError):
        raise ended.error
    assert ended.error is None, f"{what}: {ended.error!r}"
    assert ended.value is not None, f"{what}: exit code {ended.exit_code}"
    trial.record(ended.value)


def _fill_and_go_on(pipelines: Pipelines, what: str, whole: Path, limit: _FileSize | _Disk, *, share: float) -> str:
    """Make ``what`` with too little space, then with enough. For a forked process, since limits cannot be taken back."""
    place, stage = limit.place, what.partition(",")[0]
    size, said = _run_out_of_space(pipelines, what, whole, limit, share=share)
    assert "it needs " in said, f"how much is wanted is not said: {said}"
    assert re.search(r"[\d,]+ bytes (are free|here)", said) is not None, f"how much is free is not said: {said}"
    limit.lift()
    read_verified(place / _output_of(what), made_by=stage)
    run(place, _config(what, place), stage)
    shutil.rmtree(place / "store", ignore_errors=True)
    num_files = assert_equal_artifacts(place / _output_of(what), whole)
    return f"{what}, {limit.said(size)}: {said.replace(str(place), '')} · the artifact before stood; then {num_files} files as unbroken"


def _run_out_of_space(pipelines: Pipelines, what: str, whole: Path, limit: _FileSize | _Disk, *, share: float) -> tuple[int, str]:
    """The size that was too little, at most ``share`` of what the artifact takes, and what was said."""
    place = limit.place
    taken = limit.taken_by([path.stat().st_size for path in whole.rglob("*") if path.is_file()])
    for attempt in range(_TRIES):
        limit.lift()
        for name in (_output_of(what), "store"):
            shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(pipelines.older / _output_of(what), place / _output_of(what))
        pipelines.link_inputs(place, what)
        size = int(taken * share * 0.7**attempt) + 1
        limit.set(size)
        try:
            run(place, _config(what, place), what.partition(",")[0])
        except TryAgain as full:
            return size, str(full)
    raise AssertionError(f"{what} never ran out of space")
