"""Shards that someone else made, as a source: webdataset tars (pixparse/cc12m-wds) and img2dataset's output.

``shards.json`` in the source folder lists them (``rglcd data use`` writes it):

    {"shards": [{"uri": "s3://bucket/00000.tar", "bytes": 1, "version": "etag or sha256", "rows": null}, ...]}

Third-party tars are untrusted: nothing is extracted, so member names cannot escape; links and devices are no samples; a tar
without its end was cut, and webdataset would read what is left of it without an error. Where img2dataset's ``.parquet`` lies
beside a tar, every row that it knows of is accounted for, whether the tar holds it or not.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason
from rglcd.sharding.content_store import ContentStore, Fetched
from rglcd.sharding.shards import BoundedHeader
from rglcd.sharding.source import MAX_IMAGE_BYTES, Candidate
from rglcd.sharding.texts import MAX_CAPTION_BYTES
from rglcd.store.disk_space import is_disk_full
from rglcd.store.manifest import sha256_of

LISTING: Final = "shards.json"

_IMAGES: Final = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
_CAPTIONS: Final = ("txt", "text", "caption")
_MAX_JSON_BYTES: Final = 1 << 20
_BLOCK: Final = 512
MAX_MEMBERS: Final = 1 << 18
"""Of one tar: their places are held in memory. img2dataset makes 10,000 samples of three members each, by default."""
_AGAIN: Final = "get it again, and then: rglcd data use"


@dataclass(frozen=True)
class ReadyShard:
    """A file elsewhere: ``version`` is its sha256 if it is local, else its store's ETag (or nothing, where a store has none).

    ``rows`` is img2dataset's parquet file beside it.
    """

    uri: str
    bytes: int
    version: str | None
    rows: "ReadyShard | None" = None

    @property
    def is_remote(self) -> bool:
        return "://" in self.uri


@dataclass(frozen=True)
class ReadyShards:
    """Each tar of the listing makes one shard. ``store`` keeps those that come from elsewhere."""

    shards: tuple[ReadyShard, ...]
    store: ContentStore | None

    @classmethod
    def open(cls, listing: Path, store: ContentStore | None) -> "ReadyShards":
        """Raises :class:`InputError` for a listing that cannot be read, or one that leads elsewhere when ``store`` is None."""
        try:
            shards = tuple(_entry(entry) for entry in json.loads(listing.read_text(encoding="utf-8"))["shards"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{listing} cannot be read ({error}); write it with: rglcd data use") from None
        if not shards:
            raise InputError(f"{listing} lists no shards")
        if store is None and any(shard.is_remote for shard in shards):
            raise InputError(f"{listing} names shards that lie elsewhere: set sharding.download.kind=web, which says where to keep them")
        return cls(shards, store)

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    @property
    def num_rows(self) -> int | None:
        return None  # known only when each was opened

    def candidates(self, number: int) -> Iterator[Candidate]:
        """What each sample of tar ``number`` offers, by key; with a parquet file, what each of its rows does."""
        shard = self.shards[number]
        path = self._local(shard)
        samples, is_whole = _indexed(path)
        if shard.rows is None:
            if not is_whole:
                raise InputError(f"{shard.uri} was cut: it has no end; {_AGAIN}")
            rows: Mapping[str, Mapping[str, Any] | None] = dict.fromkeys(samples)
        else:
            rows = _rows(self._local(shard.rows))
        with path.open("rb") as stream:
            for key in sorted(rows):
                yield _candidate(rows[key], samples.get(key), stream, label=f"{Path(shard.uri).name}/{key}")

    def _local(self, shard: ReadyShard) -> Path:
        """Where ``shard`` lies on this machine, as it was when it was listed."""
        if not shard.is_remote:
            path = Path(shard.uri)
            if not path.is_file():
                raise InputError(f"{path} is missing; {_AGAIN}")
            if path.stat().st_size != shard.bytes or sha256_of(path) != shard.version:
                raise InputError(f"{path} has changed since it was listed; run again: rglcd data use")
            return path
        assert self.store is not None
        address = f"{shard.uri} {shard.version}"
        known = self.store.recall(address)
        if known is None or known.sha256 is None:
            known = self.store.remember(Fetched(address, _fetch(shard, self.store)))
        assert known.sha256 is not None
        return self.store.path(known.sha256)


def _entry(values: Mapping[str, Any] | None) -> ReadyShard:
    if values is None:
        raise ValueError("an entry is null")
    rows = values.get("rows")
    return ReadyShard(str(values["uri"]), int(values["bytes"]), values["version"], None if rows is None else _entry(rows))


def _fetch(shard: ReadyShard, store: ContentStore) -> str:
    """Bring a remote file into the store; returns its sha256."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(shard.uri)
        with filesystem.open(path, "rb") as stream, store.incoming() as incoming:
            while chunk := stream.read(4 << 20):
                incoming.write(chunk)
            if incoming.num_bytes != shard.bytes:
                raise InputError(
                    f"{shard.uri} gave {incoming.num_bytes} bytes, not {shard.bytes}; run again, or if it was replaced: rglcd data use"
                )
    except InputError:
        raise
    except Exception as error:  # each of fsspec's file systems raises its own library's errors
        if is_disk_full(error):
            raise
        raise InputError(f"{shard.uri} cannot be fetched: {' '.join(str(error).split())[:300]}") from None
    return incoming.state.hexdigest()


@dataclass(frozen=True)
class _Extent:
    offset: int
    bytes: int


def _indexed(path: Path) -> tuple[dict[str, dict[str, _Extent]], bool]:
    """Where the parts of each sample lie, by key and extension; and whether the tar has its end."""
    samples: dict[str, dict[str, _Extent]] = {}
    end = 0
    try:
        with tarfile.open(path, mode="r:", tarinfo=BoundedHeader) as tar:
            num_members = 0
            while (member := tar.next()) is not None:
                num_members += 1
                if num_members > MAX_MEMBERS:
                    raise InputError(f"{path} holds more than {MAX_MEMBERS:,} members, {member.name[:80]!r} the first too many; split it")
                tar.members = []  # type: ignore[attr-defined]  # or it keeps one for each of however many there are
                key, extension = _split(member.name)
                if member.type == tarfile.REGTYPE and key:
                    parts = samples.setdefault(key, {})
                    if extension in parts:
                        raise InputError(f"{path} holds {member.name[:80]!r} twice: one of two samples would be lost; {_AGAIN}")
                    parts[extension] = _Extent(member.offset_data, member.size)
            end = tar.offset
    except tarfile.ReadError as error:
        if not samples:
            raise InputError(f"{path} is not a tar: {error}; {_AGAIN}") from None
        return samples, False
    with path.open("rb") as stream:
        stream.seek(end)
        return samples, stream.read(_BLOCK) == bytes(_BLOCK)


def _split(name: str) -> tuple[str, str]:
    """A member's key and extension, as webdataset has them: the key ends at the name's first dot, and its folder is part of it."""
    folder, _, name = name.rpartition("/")
    stem, _, extension = name.partition(".")
    return (posixpath.normpath(f"{folder}/{stem}") if folder and stem else stem), extension.lower()


def _rows(path: Path) -> dict[str, Mapping[str, Any] | None]:
    """The rows of img2dataset's parquet file, by key. Raises :class:`InputError`."""
    try:
        table = pq.read_table(path, columns=["key", "url", "caption", "status"])
    except Exception as error:  # pyarrow's own types, and ValueError, KeyError and OSError
        raise InputError(f"{path} is not img2dataset's: {' '.join(str(error).split())[:200]}; {_AGAIN}") from None
    return {str(row["key"]): row for row in table.to_pylist()}


def _candidate(row: Mapping[str, Any] | None, parts: Mapping[str, _Extent] | None, stream: Any, *, label: str) -> Candidate:
    known = row or {}
    if parts is None:
        reason = Reason.LOST_UPSTREAM if known.get("status") == "success" else Reason.FAILED_UPSTREAM
        return Candidate(known.get("url"), known.get("caption"), None, reason)

    def read(extensions: tuple[str, ...] | frozenset[str], limit: int) -> bytes | None:
        extents = [parts[extension] for extension in sorted(parts) if extension in extensions]
        if not extents or extents[0].bytes > limit:
            return None
        stream.seek(extents[0].offset)
        data: bytes = stream.read(extents[0].bytes)
        return data if len(data) == extents[0].bytes else None

    facts = _facts(read(("json",), _MAX_JSON_BYTES))
    url = known.get("url") or facts.get("url")
    url = url if isinstance(url, str) else label
    caption = (read(_CAPTIONS, MAX_CAPTION_BYTES) or b"").decode(errors="replace").replace("\0", "").strip()
    if any(parts[extension].bytes > MAX_IMAGE_BYTES for extension in parts if extension in _IMAGES):
        return Candidate(url, caption, None, Reason.TOO_LARGE)
    image = read(_IMAGES, MAX_IMAGE_BYTES)
    if image is None or not (caption or any(extension in parts for extension in _CAPTIONS)):
        return Candidate(url, caption or None, None, Reason.INCOMPLETE_SAMPLE if row is None else Reason.LOST_UPSTREAM)
    return Candidate(url, caption, image) if caption else Candidate(url, None, None, Reason.EMPTY_CAPTION)


def _facts(data: bytes | None) -> Mapping[str, Any]:
    try:
        facts = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
