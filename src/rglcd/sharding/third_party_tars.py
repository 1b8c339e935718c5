"""Shards that someone else made, as a source: webdataset tars (pixparse/cc12m-wds) and img2dataset's output.

``shards.json`` in the source folder lists them (``rglcd data use`` writes it):

    {"shards": [{"uri": "s3://bucket/00000.tar", "bytes": 1, "version": "etag or sha256", "rows": null}, ...]}

Third-party tars are untrusted: nothing is extracted, so member names cannot escape; a tar without its end was cut, and webdataset
would read what is left of it without an error. Where img2dataset's ``.parquet`` lies beside a tar, every row that it knows of is
accounted for, whether the tar holds it or not, and every sample of the tar that it does not know of.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason, RowRejectedError
from rglcd.sharding.content_store import ContentStore, Fetched
from rglcd.sharding.source import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES, MAX_ROW_BYTES, Candidate
from rglcd.sharding.tar_index import Extent, Parts, index_of
from rglcd.sharding.texts import CAPTION_EXTENSIONS, MAX_JSON_BYTES, checked_caption, facts_in, text_of
from rglcd.store.connection import attempts, open_url, with_retries
from rglcd.store.manifest import sha256_of

LISTING: Final = "shards.json"

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
    """Each tar of the listing makes one shard. ``store`` keeps those that come from elsewhere; captions not UTF-8 are in ``encoding``."""

    shards: tuple[ReadyShard, ...]
    store: ContentStore | None
    encoding: str | None = None

    @classmethod
    def open(cls, listing: Path, store: ContentStore | None, encoding: str | None = None) -> "ReadyShards":
        """Raises :class:`InputError` for a listing that cannot be read, or one that leads elsewhere when ``store`` is None."""
        try:
            shards = tuple(_entry(entry) for entry in json.loads(listing.read_text(encoding="utf-8"))["shards"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{listing} cannot be read ({error}); write it with: rglcd data use") from None
        if not shards:
            raise InputError(f"{listing} lists no shards")
        if store is None and any(shard.is_remote for shard in shards):
            raise InputError(f"{listing} names shards that lie elsewhere: set sharding.download.kind=web, which says where to keep them")
        return cls(shards, store, encoding)

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
        index = index_of(path)
        if shard.rows is None and index.problem is not None:
            raise InputError(f"{shard.uri} {index.problem}; {_AGAIN}")
        rows: list[tuple[str, Mapping[str, Any] | None]] = [] if shard.rows is None else _rows(self._local(shard.rows))
        known = frozenset(key for key, _ in rows)
        rows += [(key, None) for key in index.samples if key not in known]
        with path.open("rb") as stream:
            for key, row in sorted(rows, key=itemgetter(0)):
                label, parts = f"{Path(shard.uri).name}/{key}", index.samples.pop(key, None)  # a second row of one key finds none
                if parts is None or key not in index.num_copies:
                    yield _candidate(row, parts, stream, label=label, encoding=self.encoding)
                else:
                    url = _text((row or {}).get("url")) or label
                    yield from [Candidate(url, None, None, Reason.REPEATED_MEMBER)] * (1 + index.num_copies[key])

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
    """Bring a remote file into the store; returns its sha256.

    Two copies of another size are as its place has it; one may have been cut on its way. Raises :class:`TryAgain` if it cannot be had now.
    """
    filesystem, path = open_url(shard.uri)
    given: int | None = None
    try:
        for _ in attempts():
            before = given
            given, sha256 = with_retries(lambda: _streamed(filesystem, path, shard.bytes, store), what=shard.uri)
            if sha256 is not None:
                return sha256
            if given == before:
                break
    except FileNotFoundError:
        raise InputError(f"{shard.uri} is missing; if it was moved: rglcd data use") from None
    raise InputError(f"{shard.uri} gave {given} bytes, not {shard.bytes}; run again, or if it was replaced: rglcd data use")


def _streamed(filesystem: Any, path: str, num_bytes: int, store: ContentStore) -> tuple[int, str | None]:
    """How many bytes the file at ``path`` gave, and, if these are ``num_bytes``, the sha256 by which the store has them now."""
    with suppress(_OtherSizeError), filesystem.open(path, "rb") as stream, store.incoming() as incoming:
        while chunk := stream.read(4 << 20):
            incoming.write(chunk)
        if incoming.num_bytes != num_bytes:
            raise _OtherSizeError
    return incoming.num_bytes, incoming.state.hexdigest() if incoming.num_bytes == num_bytes else None


class _OtherSizeError(Exception):
    """What came is not as large as what was listed, so the store is not to keep it."""


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any] | None]]:
    """The rows of img2dataset's parquet file, each with its key. Raises :class:`InputError`."""
    try:
        table = pq.read_table(path, columns=["key", "url", "caption", "status"])
        columns = {name: _values(table.column(name)) for name in table.column_names}
    except Exception as error:  # pyarrow's own types, and ValueError, KeyError and OSError
        raise InputError(f"{path} is not img2dataset's: {' '.join(str(error).split())[:200]}; {_AGAIN}") from None
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [(str(row["key"]), row) for row in rows]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column, those that are text as such, although nobody has made sure that they are UTF-8."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in column.to_pylist()]


def _candidate(row: Mapping[str, Any] | None, parts: Parts | None, stream: BinaryIO, *, label: str, encoding: str | None) -> Candidate:
    known = row or {}
    url, caption = _text(known.get("url")), _text(known.get("caption"))
    if parts is None:
        return Candidate(url, caption, None, Reason.LOST_UPSTREAM if known.get("status") == "success" else Reason.FAILED_UPSTREAM)
    facts = _facts(parts, stream, encoding)
    url, caption = url or (None if isinstance(facts, RowRejectedError) else _text(facts.get("url"))), None
    try:
        caption = _caption(parts, facts, stream, encoding)
        if any(parts[extension].bytes > MAX_IMAGE_BYTES for extension in parts if extension in IMAGE_EXTENSIONS):
            raise RowRejectedError(Reason.TOO_LARGE)
        image = _read(
            next((parts[extension] for extension in sorted(parts) if extension in IMAGE_EXTENSIONS), None), stream, MAX_IMAGE_BYTES
        )
        unknown = sorted(parts.keys() - IMAGE_EXTENSIONS - {*CAPTION_EXTENSIONS, "json"})
        if image is None and unknown:
            label = f"{label}.{unknown[0]}".rstrip(".")
            raise RowRejectedError(Reason.UNKNOWN_EXTENSION)
        if image is None or caption is None:
            raise RowRejectedError(Reason.INCOMPLETE_SAMPLE if row is None else Reason.LOST_UPSTREAM)
    except RowRejectedError as rejected:
        return Candidate(url or label, caption, None, rejected.reason, rejected.fault)
    return Candidate(url or label, caption, image)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _read(extent: Extent | None, stream: BinaryIO, max_bytes: int) -> bytes | None:
    """The bytes of a member; None if there is none, if it is larger, and if the tar ends before it does."""
    if extent is None or extent.bytes > max_bytes:
        return None
    stream.seek(extent.offset)
    data = stream.read(extent.bytes)
    return data if len(data) == extent.bytes else None


def _facts(parts: Parts, stream: BinaryIO, encoding: str | None) -> Mapping[str, Any] | RowRejectedError:
    """What the JSON of a sample says, or why its bytes are no text: no matter, if the caption lies in another member."""
    try:
        return facts_in(_read(parts.get("json"), stream, MAX_JSON_BYTES) or b"", encoding)
    except RowRejectedError as rejected:
        return rejected


def _caption(parts: Parts, facts: Mapping[str, Any] | RowRejectedError, stream: BinaryIO, encoding: str | None) -> str | None:
    """A sample's caption; None if no member holds one. Raises :class:`RowRejectedError`."""
    for extension in CAPTION_EXTENSIONS:
        if extension in parts:
            if parts[extension].bytes > MAX_ROW_BYTES:
                raise RowRejectedError(Reason.CAPTION_TOO_LONG)
            data = _read(parts[extension], stream, MAX_ROW_BYTES)
            return None if data is None else checked_caption(text_of(data, encoding))
    if isinstance(facts, RowRejectedError):
        raise RowRejectedError(facts.reason) from facts.__cause__
    given = _text(facts.get("caption"))
    return None if given is None else checked_caption(given)
