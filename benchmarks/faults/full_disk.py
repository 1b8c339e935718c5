"""F9: no room, at a moment that chance has chosen: a disk that is full, or a limit on the size of a file."""

import ctypes
import os
import random
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.faults.apart import apart
from benchmarks.faults.likeness import require_equal
from benchmarks.faults.row import Row, Trial, require
from rglcd.config import Config
from rglcd.data.manifest import read_verified
from rglcd.errors import StateSaved
from rglcd.stages.table import SOURCE, stage_named
from tests.data.hostile_server import OPEN, HostileServer
from tests.tiny_line import NUM_IMAGES, run, tiny_config, write_pretrained_artifact, write_tiny_source

_STAGES = ("shard", "shard, from the web", "cache", "pretrain", "distill")
_OVERRIDES = {
    "shard": "sharding.max_rows=7",
    "cache": "caching.text_embeddings=true",
    "pretrain": "pretraining.seed=1",
    "distill": "distillation.seed=1",
}
"""What the good state that must survive was made with."""
_TRIES = 12
_ENOUGH = 256 << 20


@contextmanager
def _full_disk(scratch: Path, seed: int) -> Iterator[Trial]:
    with ExitStack() as stack:
        server = stack.enter_context(HostileServer())
        line = scratch / "unbroken"
        write_tiny_source(line / "data")
        write_pretrained_artifact(line / "pretrained")
        _list_urls(line / "web", server)
        made: list[str] = []

        def make_upto(stage: str) -> None:
            """What an unbroken run makes, and the good state of before."""
            for each, override in _OVERRIDES.items():
                if stage in made:
                    break
                if each not in made:
                    run(line, tiny_config(), each)
                    _run_at(line, scratch / "older", tiny_config(override), each)
                    made.append(each)

        def trial(number: int) -> str:
            what, rng = _STAGES[number % len(_STAGES)], random.Random(f"{seed}/{number}")
            stage, on_tmpfs = what.partition(",")[0], number // len(_STAGES) % 2 == 1
            (output,) = stage_named(stage).outputs
            is_web = what != stage
            make_upto(stage)
            if is_web and not (scratch / "unbroken-web").exists():  # its bytes differ from those of the local pictures
                _run_at(line, scratch / "unbroken-web", _web(scratch / "unbroken-store"), "shard", source="web")
            whole = (scratch / "unbroken-web" if is_web else line) / output
            sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
            share = rng.uniform(0.02, 0.98)

            def work() -> str:
                place = scratch / "full"
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                room = _Disk(place) if on_tmpfs else _FileSize()
                config = _web(place / "store") if is_web else tiny_config()
                source = "web" if is_web else "data"
                for attempt in range(_TRIES):
                    room.open()
                    shutil.rmtree(place / output, ignore_errors=True)
                    shutil.rmtree(place / "store", ignore_errors=True)
                    shutil.copytree(scratch / "older" / output, place / output)
                    size = int((sum(sizes) if on_tmpfs else max(sizes)) * share * 0.7**attempt) + 1
                    _link_inputs(line, place, stage, source=source)
                    room.close_to(size)
                    try:
                        run(place, config, stage)
                    except StateSaved as full:
                        said = str(full)
                        break
                else:
                    return f"MISSED: {what} never ran out of room"
                room.open()
                read_verified(place / output, made_by=stage)
                run(place, config, stage)
                shutil.rmtree(place / "store", ignore_errors=True)
                num_files = require_equal(place / output, whole)
                said = said.replace(str(place), "")
                return f"{what}, {room.said(size)}: {said} · the artifact before stood; then {num_files} files as unbroken"

            ended = apart(work, within=300)
            require(ended.error is None and ended.value is not None, f"{what}: {ended.error!r}, exit code {ended.exit_code}")
            said = str(ended.value)
            require(not said.startswith("MISSED"), said)
            require(
                "it needs " in said and re.search(r"[\d,]+ bytes (are free|here)", said) is not None,
                f"the message does not say how much is wanted: {said}",
            )
            return said

        yield trial


def _run_at(line: Path, place: Path, config: Config, stage_name: str, *, source: str = "data") -> None:
    """Run a stage on the unbroken line's artifacts, its output below ``place``."""
    _link_inputs(line, place, stage_name, source=source)
    run(place, config, stage_name)


def _link_inputs(line: Path, place: Path, stage_name: str, *, source: str) -> None:
    place.mkdir(exist_ok=True)
    for name in stage_named(stage_name).inputs:
        link = place / ("data" if name == SOURCE else name)
        if not link.exists():
            link.symlink_to(line / (source if name == SOURCE else name))


def _list_urls(folder: Path, server: HostileServer) -> None:
    folder.mkdir()
    (folder / "index.tsv").write_text("".join(f"{server.url(f'image/{seed}')}\tcaption {seed}\n" for seed in range(NUM_IMAGES)))


def _web(store: Path) -> Config:
    return tiny_config(f"sharding.download={{kind: web, store: {store}, allowed_networks: ['{OPEN}/32']}}")


class _FileSize:
    """A limit on the size of any one file, as a quota or a job's ulimit sets it."""

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
    fault="no room left at a random write of shard (local and from the web), cache, pretrain, distill: half a full disk, "
    "half a limit on file sizes",
    must="exit code 75 with the bytes wanted and free; the artifact before intact; with room, the same command ends byte-identical",
    unit="writes",
    num_rounds=50,
    sample=range(3),
    open=_full_disk,
)
