"""F18: tars made to do harm: members that lead elsewhere, links, huge records, millions of members."""

import io
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rglcd.sharding.shards import ShardEntry, read_shard
from rglcd.sharding.source import Candidate
from rglcd.store.manifest import FileEntry, sha256_of
from tests.faults.refusals import read_third_party_tar, refusal_of
from tests.faults.rounds import Trial
from tests.faults.watched_process import Ended, run_forked

_BLOCK = 512

_WHOLE = (("000.png", b"image"), ("000.txt", b"caption"), ("000.json", b"{}"))
_NUM_TINY = 10_000_000
_GROWTH = 256 << 20  # bytes that reading a hostile tar may add

Write = Callable[[Path, random.Random], None]


def _named(name: str) -> Write:
    return lambda path, rng: _tar(path, [(tarfile.TarInfo(name), b"x" * rng.randrange(1, 2000)), *_members()])


def _typed(kind: bytes, target: str = "/etc/passwd") -> Write:
    def write(path: Path, rng: random.Random) -> None:
        header = tarfile.TarInfo("evil.png")
        header.type, header.linkname = kind, target
        header.devmajor, header.devminor = 1, rng.randrange(1, 10)
        _tar(path, [(header, b""), *_members()])

    return write


def _members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(name), body) for name, body in _WHOLE]


def _tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for header, body in members:
            header.size = len(body)
            tar.addfile(header, io.BytesIO(body))


def _twice(path: Path, rng: random.Random) -> None:
    _tar(path, [*_members(), (tarfile.TarInfo(f"000.{rng.choice(['png', 'txt', 'json'])}"), b"another")])


def _header(path: Path, *, kind: bytes, size: int, then: int = 0) -> None:
    """One header that says what it likes, and a hole behind it."""
    header = tarfile.TarInfo("000.png")
    header.type, header.size = kind, size
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as stream:
        stream.truncate(_BLOCK + then + 2 * _BLOCK)


def _leads_back(path: Path, rng: random.Random) -> None:
    _header(path, kind=tarfile.REGTYPE, size=-_BLOCK * rng.randrange(1, 4))


def _long_record(kind: bytes) -> Write:
    return lambda path, rng: _header(path, kind=kind, size=512 << 20, then=512 << 20)


def _oversize(path: Path, rng: random.Random) -> None:
    _header(path, kind=tarfile.REGTYPE, size=(64 << 20) + rng.randrange(1000), then=65 << 20)


def _tiny_members(path: Path, rng: random.Random, *, count: int) -> None:
    template = np.frombuffer(tarfile.TarInfo("00000000.txt").tobuf(tarfile.USTAR_FORMAT), dtype=np.uint8)
    with path.open("wb") as stream:
        for start in range(0, count, 10_000):
            headers = np.tile(template, (min(10_000, count - start), 1))
            numbers = np.arange(start, start + len(headers))
            for place in range(8):
                headers[:, 7 - place] = 48 + numbers // 10**place % 10
            sums = headers[:, :148].sum(1, dtype=np.int64) + 8 * 32 + headers[:, 156:].sum(1, dtype=np.int64)
            for place in range(6):
                headers[:, 148 + 5 - place] = 48 + (sums >> 3 * place) % 8
            stream.write(headers.tobytes())
        stream.write(bytes(2 * _BLOCK))


_KINDS: dict[str, Write] = {
    "../": _named("../000.png"),
    "deep ../": _named("a/../../../000.jpg"),
    "an absolute name": _named("/tmp/000.png"),
    "a pickle": _named("000.pkl"),
    "a symbolic link": _typed(tarfile.SYMTYPE),
    "a hard link": _typed(tarfile.LNKTYPE),
    "a character device": _typed(tarfile.CHRTYPE),
    "a block device": _typed(tarfile.BLKTYPE),
    "a pipe": _typed(tarfile.FIFOTYPE),
    "a folder": _typed(tarfile.DIRTYPE),
    "a part twice": _twice,
    "a header that leads back": _leads_back,
    "a name of 512 MiB": _long_record(tarfile.GNUTYPE_LONGNAME),
    "a PAX record of 512 MiB": _long_record(tarfile.XHDTYPE),
    "an oversize member": _oversize,
    "300,000 empty members": lambda path, rng: _tiny_members(path, rng, count=300_000),
}


def _ten_million(path: Path, rng: random.Random) -> None:
    _tiny_members(path, rng, count=_NUM_TINY)


_BIG = f"{_NUM_TINY:,} empty members"
_NUM_ORDINARY = 6 * len(_KINDS)


@pytest.mark.fault(
    "F18",
    fault="tar members with `../`, absolute names, links, devices, parts twice, huge records, 10 million empty members",
    must="refused with the shard's name, or a label that leads nowhere; nothing written; less than 256 MiB of memory",
    unit="tars",
    num_rounds=_NUM_ORDINARY + 1,
    sample=range(12),
)
def test_hostile_tar_is_refused_in_little_memory_and_writes_nothing(trial: Trial, tmp_path: Path) -> None:
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    path = inside / "hostile.tar"
    what = list(_KINDS)[trial.number % len(_KINDS)] if trial.number < _NUM_ORDINARY else _BIG
    (_KINDS | {_BIG: _ten_million})[what](path, trial.rng())
    before = sorted(str(found) for found in tmp_path.rglob("*"))
    entry = ShardEntry(path.name, FileEntry(sha256_of(path), path.stat().st_size), 2)
    idle = run_forked(lambda: None).peak_bytes
    ours = run_forked(lambda: refusal_of(lambda: list(read_shard(path, entry))), timeout=120)
    theirs = run_forked(lambda: _outcome(read_third_party_tar(path, inside / "source")), timeout=240)
    shutil.rmtree(inside / "source", ignore_errors=True)
    _assert_ended_well(ours, f"{what}: our reader", idle)
    _assert_ended_well(theirs, f"{what}: the reader of third-party tars", idle)
    assert ours.value is not None, f"{what}: read as if it were a shard of ours"
    assert str(path) in ours.value, f"{what}: the refusal does not name the shard: {ours.value}"
    assert sorted(str(found) for found in tmp_path.rglob("*")) == before, f"{what}: something was written"
    ours_said, theirs_said = (ended.value.replace(str(path), path.name) for ended in (ours, theirs))
    trial.record(f"{what}: ours: {ours_said}; as a third-party tar: {theirs_said}")


def _assert_ended_well(ended: Ended, who: str, idle: int) -> None:
    assert ended.error is None, f"{who} ended with {ended.error!r}"
    assert ended.exit_code == 0, f"{who} ended with exit code {ended.exit_code}"
    assert ended.peak_bytes - idle < _GROWTH, f"{who} took {(ended.peak_bytes - idle) >> 20} MiB"


def _outcome(read: str | list[Candidate]) -> str:
    if isinstance(read, str):
        return read
    return ", ".join(f"{found.url} {found.reason or 'is a sample'}" for found in read) or "no samples"
