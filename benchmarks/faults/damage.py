"""F4, F5 and F18: tars that were cut, files with another bit, members that lead elsewhere."""

import io
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.faults.apart import apart
from benchmarks.faults.row import Row, Trial, evenly, require
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.sharding.import_source import use
from rglcd.sharding.shards import Sample, ShardEntry, read_shard, sample_key, shard_entries, write_shard
from rglcd.sharding.source import Candidate
from rglcd.sharding.third_party_tars import LISTING, ReadyShards
from rglcd.stages.run import TIMINGS
from rglcd.store.manifest import FileEntry, read_verified, sha256_of
from rglcd.training.checkpoint import Checkpointer
from tests.publishing import publish
from tests.tiny_line import run, tiny_config, up_to_latents

# --- F4 ------------------------------------------------------------------------------------------

_BLOCK = 512
_NUM_BLOCKS, _NUM_PLACES = 3000, 200
_NUM_SAMPLES = 115
"""Of 26 blocks each, which with the tar's end are 3,000."""


@contextmanager
def _cut(scratch: Path, seed: int) -> Iterator[Trial]:
    folder, path = scratch / "shards", scratch / "cut.tar"
    folder.mkdir()
    rng = random.Random(seed)
    keys = [sample_key(0, place, rows_per_shard=1000) for place in range(_NUM_SAMPLES)]
    write_shard(folder, 0, [Sample(key, rng.randbytes(21 * _BLOCK), f"caption {key}", {"key": key}) for key in keys], extension="png")
    (entry,) = shard_entries(publish(folder, stage="shard"))
    whole = (folder / entry.name).read_bytes()
    require(len(whole) == _NUM_BLOCKS * _BLOCK, f"the tar has {len(whole) / _BLOCK} blocks, not {_NUM_BLOCKS}")

    def trial(number: int) -> str:
        at = number * _BLOCK if number < _NUM_BLOCKS else random.Random(f"{seed}/{number}").randrange(len(whole))
        path.write_bytes(whole[:at])
        said = _refusal(lambda: read_shard(path, entry))
        require(said is not None, f"cut at byte {at}, it was read")
        require(f"{path} has {at} bytes, not {len(whole)}" in str(said), f"cut at byte {at}: {said}")
        foreign = _read_as_foreign(path, scratch / "source")
        lost = isinstance(foreign, list) and len(foreign) < _NUM_SAMPLES
        require(not lost, f"cut at byte {at}, it was read as somebody else's with {len(foreign)} samples")
        theirs = "refused too" if isinstance(foreign, str) else "whole, only its padding was cut"
        return f"cut at byte {at}: ours refused by shard and length before its first sample; as somebody else's {theirs}"

    yield trial


def _refusal(act: Callable[[], object]) -> str | None:
    """What :class:`InputError` said, if it was raised."""
    try:
        act()
    except InputError as refused:
        return str(refused)
    return None


def _read_as_foreign(path: Path, source: Path) -> str | list[Candidate]:
    """The samples of a tar that nobody vouches for, or why it was refused."""
    shutil.rmtree(source, ignore_errors=True)
    use(str(path), source)
    try:
        return list(ReadyShards.open(source / LISTING, None).candidates(0))
    except InputError as refused:
        return str(refused)


CUTS = Row(
    name="F4",
    fault="a tar cut at every 512-byte block and at 200 random bytes",
    must="refused before its first sample, by shard and offset; a foreign tar refused, or all of it read",
    unit="cuts",
    num_rounds=_NUM_BLOCKS + _NUM_PLACES,
    sample=evenly(40, of=_NUM_BLOCKS + _NUM_PLACES),
    open=_cut,
)

# --- F5 ------------------------------------------------------------------------------------------


@contextmanager
def _flipped(scratch: Path, seed: int) -> Iterator[Trial]:
    config = tiny_config()
    up_to_latents(scratch, config)
    run(scratch, config, "pretrain")
    run(scratch, config, "distill")
    checkpoints = Checkpointer(scratch / "checkpoints")
    for step in (1, 2):
        generator = torch.Generator().manual_seed(step)
        parts = {name: {"weight": torch.randn(40, 10, generator=generator)} for name in ("student", "optimizer")}
        newest = checkpoints.save(step, parts, {"curve": [{"step": step, "loss": 0.5}]})
    shards, latents = scratch / "shards", scratch / "latents"

    def read_shards() -> None:
        for entry in shard_entries(shards):
            list(read_shard(shards / entry.name, entry))

    def read_latents() -> None:
        cache = LatentCache.open(latents)
        cache.batch(torch.arange(len(cache)))
        cache.captions(torch.arange(len(cache)))

    def resume() -> None:
        latest = checkpoints.latest()
        if latest is not None and latest.step == 1:
            raise InputError(f"{newest} is passed over for the one before")

    victims: list[tuple[Path, Callable[[], object]]] = [
        *((path, read_shards) for path in sorted([*shards.glob("*.tar"), *shards.glob("*_stats.json"), shards / "manifest.json"])),
        *((path, read_latents) for path in sorted(latents.iterdir()) if path.name != TIMINGS),
        *((path, resume) for path in sorted(newest.iterdir())),
        *((path, lambda: read_verified(scratch / "pretrained", made_by="prepare")) for path in _files(scratch / "pretrained")),
        *((path, lambda: read_verified(scratch / "student", made_by="distill")) for path in _files(scratch / "student")),
        (latents / TIMINGS, lambda: _pretrain_anew(scratch)),
    ]

    def trial(number: int) -> str:
        rng = random.Random(f"{seed}/{number}")
        path, read = victims[number % len(victims)]
        whole = path.read_bytes()
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        name = path.relative_to(scratch)
        try:
            said = _refusal(read)
        finally:
            path.write_bytes(whole)
        require(said is not None, f"bit {bit} of byte {place} of {name} flipped, and it was read")
        named = newest.name if read is resume else str(path.name)
        require(named in str(said), f"{name}: the message does not name it: {said}")
        return f"bit {bit} of byte {place} of {name}: {said}"

    read_shards(), read_latents()
    require(_refusal(resume) is None, "the newest checkpoint is not read though nothing was done to it")
    yield trial


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _pretrain_anew(root: Path) -> None:
    shutil.rmtree(root / "reward_model", ignore_errors=True)
    run(root, tiny_config(), "pretrain")


FLIPS = Row(
    name="F5",
    fault="one bit flipped at random in a tar, record, latent file, checkpoint, manifest, weight file or timings",
    must="found by whoever reads it, by name; a checkpoint is passed over for the one before",
    unit="flips",
    num_rounds=1000,
    sample=evenly(100, of=1000),
    open=_flipped,
)

# --- F18 -----------------------------------------------------------------------------------------

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
_BIG = f"{_NUM_TINY:,} empty members"
_NUM_ORDINARY = 6 * len(_KINDS)


@contextmanager
def _members_trial(scratch: Path, seed: int) -> Iterator[Trial]:
    def trial(number: int) -> str:
        rng = random.Random(f"{seed}/{number}")
        inside = scratch / "deep" / "inside"
        shutil.rmtree(scratch / "deep", ignore_errors=True)
        inside.mkdir(parents=True)
        path = inside / "hostile.tar"
        if number < _NUM_ORDINARY:
            what = list(_KINDS)[number % len(_KINDS)]
            _KINDS[what](path, rng)
        else:
            what = _BIG
            _tiny_members(path, rng, count=_NUM_TINY)
        before = sorted(str(found) for found in scratch.rglob("*"))
        entry = ShardEntry(path.name, FileEntry(sha256_of(path), path.stat().st_size), 2)
        idle = apart(lambda: None).peak_bytes
        ours = apart(lambda: _refusal(lambda: list(read_shard(path, entry))), within=120)
        theirs = apart(lambda: _outcome(_read_as_foreign(path, inside / "source")), within=240)
        shutil.rmtree(inside / "source", ignore_errors=True)
        for who, ended in (("our reader", ours), ("the reader of ready-made tars", theirs)):
            require(ended.exit_code == 0 and ended.error is None, f"{what}: {who} ended with {ended.exit_code}, {ended.error!r}")
            require(ended.peak_bytes - idle < _GROWTH, f"{what}: {who} took {(ended.peak_bytes - idle) >> 20} MiB")
        require(ours.value is not None, f"{what}: read as if it were a shard of ours")
        require(str(path) in ours.value, f"{what}: the refusal does not name the shard: {ours.value}")
        require(sorted(str(found) for found in scratch.rglob("*")) == before, f"{what}: something was written")
        shutil.rmtree(scratch / "deep")
        return f"{what}: ours: {ours.value.replace(str(path), path.name)}; somebody else's: {theirs.value.replace(str(path), path.name)}"

    yield trial


def _outcome(foreign: str | list[Candidate]) -> str:
    if isinstance(foreign, str):
        return foreign
    return ", ".join(f"{found.url} {found.reason or 'is a sample'}" for found in foreign) or "no samples"


MEMBERS = Row(
    name="F18",
    fault="tar members with `../`, absolute names, links, devices, parts twice, huge records, 10 million empty members",
    must="refused with the shard's name, or a label that leads nowhere; nothing written; less than 256 MiB of memory",
    unit="tars",
    num_rounds=_NUM_ORDINARY + 1,
    sample=range(12),
    open=_members_trial,
)
