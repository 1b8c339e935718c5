"""What came from the network, kept once under its SHA-256, with a record of what each address gave.

    objects/ab/abcd...        the bytes; the name says what they must be
    records/cd/cdef....json   what an address (the name is its digest) gave: a digest, or the reason there is none

So a second run needs no network and packs the same bytes, whatever the first one met. Several processes may share a store:
each file is staged and renamed, and equal names hold equal bytes. Objects may be deleted at will; they are fetched again.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from rglcd.sharding.accounting import Reason
from rglcd.sharding.urls import host_of
from rglcd.store.manifest import sha256_of
from rglcd.store.staging import STAGING

HEAD_BYTES: Final = 16
_STALE_SECONDS: Final = 3600
_LOOKED_THROUGH: Final = 100


@dataclass(frozen=True)
class Fetched:
    """What an address gave: ``sha256`` of its bytes or the ``reason`` there are none; ``round`` counts attempts at failed ones."""

    address: str
    sha256: str | None
    reason: Reason | None = None
    round: int = 1


@dataclass
class Incoming:
    """Bytes on their way in: hashed and counted as they come, never held in memory."""

    stream: BinaryIO
    num_bytes: int = 0
    head: bytes = b""
    """The first bytes, as many as are needed to tell a file's format."""
    state: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def write(self, chunk: bytes) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + chunk)[:HEAD_BYTES]
        self.stream.write(chunk)
        self.state.update(chunk)
        self.num_bytes += len(chunk)


class ContentStore:
    """A folder of objects and records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recall(self, address: str, *, round: int = 1) -> Fetched | None:
        """What ``address`` gave: bytes that are still there and whole, or a failure of this ``round`` or a later one."""
        fetched = _recorded(self._record(address))
        if fetched is None or fetched.address != address:
            return None
        if fetched.sha256 is None:
            return fetched if fetched.reason is not None and fetched.round >= round else None
        return fetched if self._holds(fetched.sha256) else None

    def addresses_that_gave(self, count: int) -> list[str]:
        """Web addresses that gave bytes, of at most ``count`` different hosts, from the first records that are found."""
        found: dict[str, str] = {}
        for record in islice(self.folder.glob("records/*/*.json"), _LOOKED_THROUGH):
            fetched = _recorded(record)
            if fetched is not None and fetched.sha256 is not None and fetched.address.startswith(("http://", "https://")):
                found.setdefault(host_of(fetched.address), fetched.address)
        return list(found.values())[:count]

    def remember(self, fetched: Fetched) -> Fetched:
        """Record what an address gave; returned as it is."""
        values = {"address": fetched.address, "sha256": fetched.sha256, "reason": fetched.reason, "round": fetched.round}
        path = self._record(fetched.address)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = _staging_of(path)
        staging.write_text(json.dumps(values), encoding="utf-8")
        staging.replace(path)
        return fetched

    def read(self, sha256: str) -> bytes | None:
        """The object called ``sha256``, if it is here and whole."""
        try:
            data = self.path(sha256).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def path(self, sha256: str) -> Path:
        """Where the object called ``sha256`` lies if it is here."""
        return self.folder / "objects" / sha256[:2] / sha256

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Take bytes in; they become an object when the block ends well, and nothing when it does not."""
        staging = self.folder / "incoming" / f".{uuid.uuid4().hex}{STAGING}"
        staging.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staging.open("wb") as stream:
                incoming = Incoming(stream)
                yield incoming
            path = self.path(incoming.state.hexdigest())
            path.parent.mkdir(parents=True, exist_ok=True)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what runs killed an hour ago or longer left half taken in."""
        for stale in (self.folder / "incoming").glob(f".*{STAGING}"):
            with suppress(FileNotFoundError):  # its owner may be alive, and about to rename it
                if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                    stale.unlink()

    def _holds(self, sha256: str) -> bool:
        path = self.path(sha256)
        return path.is_file() and sha256_of(path) == sha256

    def _record(self, address: str) -> Path:
        name = hashlib.sha256(address.encode()).hexdigest()
        return self.folder / "records" / name[:2] / f"{name}.json"


def _recorded(path: Path) -> Fetched | None:
    """What the record at ``path`` says; ``None`` for none, and for one that is not as ``remember`` writes it."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        reason = None if known["reason"] is None else Reason(known["reason"])
        return Fetched(known["address"], known["sha256"], reason, known["round"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _staging_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}{STAGING}")
