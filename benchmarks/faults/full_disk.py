"""F9: no room, at a moment that chance has chosen: a disk that is full, or a limit on the size of a file."""

import ctypes
import os
import random
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.apart import apart
from benchmarks.faults.likeness import require_equal
from benchmarks.faults.row import CriterionMissed, Row, Trial, require
from rglcd.config import Config
from rglcd.errors import StateSaved
from rglcd.stages.table import SOURCE, stage_named
from rglcd.store.manifest import read_verified
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


@contextmanager
def _full_disk(scratch: Path, seed: int) -> Iterator[Trial]:
    with HostileServer() as server:
        lines = _Lines(scratch, server)

        def trial(number: int) -> str:
            what, rng = _STAGES[number % len(_STAGES)], random.Random(f"{seed}/{number}")
            whole = lines.unbroken(what)
            kind, share = (_FileSize, _Disk)[number // len(_STAGES) % 2], rng.uniform(0.02, 0.98)
            ended = apart(lambda: _exhausted(lines, what, whole, kind, share=share), within=300)
            if isinstance(ended.error, CriterionMissed):
                raise ended.error
            require(ended.error is None and ended.value is not None, f"{what}: {ended.error!r}, exit code {ended.exit_code}")
            return str(ended.value)

        yield trial


class _Lines:
    """The tiny line, unbroken, and one of an older configuration: each stage made when it is first wanted."""

    def __init__(self, scratch: Path, server: HostileServer) -> None:
        self.scratch, self.line, self.older = scratch, scratch / "unbroken", scratch / "older"
        write_tiny_source(self.line / "data")
        write_tiny_evaluation_data(self.line / "data")
        write_pretrained_artifact(self.line / "pretrained")
        write_tiny_features(self.line / "pretrained" / "features")
        publish(self.line / "pretrained", stage="prepare")
        (self.line / "web").mkdir()
        rows = [f"{server.url(f'image/{seed}')}\tcaption {seed}\n" for seed in range(NUM_IMAGES)]
        (self.line / "web" / "index.tsv").write_text("".join(rows))
        self._made: set[str] = set()

    def unbroken(self, what: str) -> Path:
        """The artifact that ``what`` makes when there is room; the older one of its stage is made too."""
        stage = what.partition(",")[0]
        for each, override in _OVERRIDES.items():
            if stage in self._made:
                break
            if each not in self._made:
                run(self.line, _config(each, self.line), each)
                self.link_inputs(self.older, each)
                run(self.older, tiny_config(*TINY_EVALUATION, override), each)
                self._made.add(each)
        if what == stage:
            return self.line / _output_of(what)
        if what not in self._made:  # what comes from the web has bytes of its own
            self.link_inputs(self.scratch / "web", what)
            run(self.scratch / "web", _config(what, self.scratch / "web"), stage)
            self._made.add(what)
        return self.scratch / "web" / _output_of(what)

    def link_inputs(self, place: Path, what: str) -> None:
        """Let ``place`` have what ``what`` reads."""
        place.mkdir(exist_ok=True)
        stage, _, of_the_web = what.partition(",")
        for name in stage_named(stage).inputs:
            link = place / ("data" if name == SOURCE else name)
            if not link.exists():
                link.symlink_to(self.line / ("web" if of_the_web else "data") if name == SOURCE else self.line / name)


def _output_of(what: str) -> str:
    return stage_named(what.partition(",")[0]).outputs[0]


def _config(what: str, place: Path) -> Config:
    if "," not in what:
        return tiny_config(*TINY_EVALUATION)
    return tiny_config(f"sharding.download={{kind: web, store: {place / 'store'}, allowed_networks: ['{OPEN}/32']}}")


def _exhausted(lines: _Lines, what: str, whole: Path, kind: "type[_FileSize] | type[_Disk]", *, share: float) -> str:
    """Make ``what`` with too little room, then with enough. For a process of its own, which cannot take the limits back."""
    place, stage = lines.scratch / "full", what.partition(",")[0]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    room = kind(place)
    size, said = _run_out_of_room(lines, what, whole, place, room, share=share)
    require("it needs " in said and re.search(r"[\d,]+ bytes (are free|here)", said) is not None, f"how much is wanted is not said: {said}")
    room.open()
    read_verified(place / _output_of(what), made_by=stage)
    run(place, _config(what, place), stage)
    shutil.rmtree(place / "store", ignore_errors=True)
    num_files = require_equal(place / _output_of(what), whole)
    return f"{what}, {room.said(size)}: {said.replace(str(place), '')} · the artifact before stood; then {num_files} files as unbroken"


def _run_out_of_room(lines: _Lines, what: str, whole: Path, place: Path, room: "_FileSize | _Disk", *, share: float) -> tuple[int, str]:
    """The size that was too little, at most ``share`` of what the artifact takes, and what was said."""
    sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
    taken = room.taken_by(sizes)
    for attempt in range(_TRIES):
        room.open()
        for name in (_output_of(what), "store"):
            shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(lines.older / _output_of(what), place / _output_of(what))
        lines.link_inputs(place, what)
        size = int(taken * share * 0.7**attempt) + 1
        room.close_to(size)
        try:
            run(place, _config(what, place), what.partition(",")[0])
        except StateSaved as full:
            return size, str(full)
    raise CriterionMissed(f"{what} never ran out of room")


class _FileSize:
    """A limit on the size of any one file, as a quota or a job's ulimit sets it."""

    def __init__(self, place: Path) -> None:
        pass

    def taken_by(self, sizes: Sequence[int]) -> int:
        return max(sizes)

    def close_to(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def open(self) -> None:
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

    def close_to(self, size: int) -> None:
        status = os.statvfs(self.place)
        self._mount((status.f_blocks - status.f_bfree) * status.f_frsize + size, self._REMOUNT)

    def open(self) -> None:
        self._mount(_ENOUGH, self._REMOUNT)

    def said(self, size: int) -> str:
        return f"a disk with {size:,} bytes left"

    def _mount(self, size: int, flags: int) -> None:
        self._call("mount", b"none", str(self.place).encode(), b"tmpfs", flags, f"size={size}".encode())

    def _call(self, function: str, *arguments: object) -> None:
        if getattr(self._libc, function)(*arguments) != 0:
            number = ctypes.get_errno()
            raise PermissionError(number, f"a disk of memory cannot be mounted here: {function}: {os.strerror(number)}")


FULL_DISK = Row(
    name="F9",
    fault="no room left at a random write of shard (local and from the web), cache, pretrain, distill, evaluate: half a full disk, "
    "half a limit on file sizes",
    must="exit code 75 with the bytes wanted and free; the artifact before intact; with room, the same command ends byte-identical",
    unit="writes",
    num_rounds=50,
    sample=range(3),
    open=_full_disk,
)
