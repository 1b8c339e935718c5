"""Where the samples of a third-party tar lie in it.

Nothing is extracted, so no name can lead anywhere. Every member that is no folder is part of some sample, or the reason that a sample
is not whole: links, devices and members that are there twice are not passed over.
"""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from rglcd.errors import InputError
from rglcd.sharding.shards import BoundedHeader

MAX_MEMBERS: Final = 1 << 18
"""Of one tar: their places are held in memory. img2dataset makes 10,000 samples of three members each, by default."""

_VOLUME_LABEL: Final = b"V"  # of GNU tar: what the tar is called
_BLOCK: Final = 512
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Extent:
    """Where a member's bytes lie in its tar."""

    offset: int
    bytes: int


Parts = dict[str, Extent]
"""The members of a sample, by extension."""


@dataclass
class TarIndex:
    """The samples of a tar by key."""

    samples: dict[str, Parts] = field(default_factory=dict)
    num_copies: dict[str, int] = field(default_factory=dict)
    """Of a key with a member that is there again: how often. Nobody can say which image its caption belongs to."""
    problem: str | None = None
    """Why not all members are known, if so."""
    _again: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, member: tarfile.TarInfo) -> None:
        """Take in the next member."""
        key, extension = split_name(member.name)
        if member.isdir() or member.type == _VOLUME_LABEL or not key:
            return
        parts = self.samples.setdefault(key, {})
        if member.islnk():
            # Of a file that has two names, tar writes the second as a link to the first, which lies before it.
            key_of_file, extension_of_file = split_name(member.linkname)
            extent = self.samples.get(key_of_file, {}).get(extension_of_file)
        else:
            extent = Extent(member.offset_data, member.size) if member.isreg() and not member.issparse() else None
        if extent is None:
            return
        if extension in parts:
            self._again[key, extension] += 1
            self.num_copies[key] = max(self.num_copies.get(key, 0), self._again[key, extension])
        parts.setdefault(extension, extent)


def index_of(path: Path) -> TarIndex:
    """The index of the tar at ``path``, or of the tars, where several were written one behind the other (``cat a.tar b.tar``).

    Raises :class:`InputError` for a file that is no tar, and one of more than :data:`MAX_MEMBERS` members.
    """
    index, num_bytes, num_members = TarIndex(), path.stat().st_size, 0
    with path.open("rb") as stream:
        begin: int | None = 0
        while begin is not None:
            end = begin
            stream.seek(begin)
            try:
                for member, end in _members(stream):  # the last one's end is read below
                    num_members += 1
                    if num_members > MAX_MEMBERS:
                        raise InputError(
                            f"{path} holds more than {MAX_MEMBERS:,} members, {member.name[:80]!r} the first too many; split it"
                        )
                    if end > num_bytes:
                        break
                    index.add(member)
            except tarfile.TarError as error:
                if not index.samples:
                    raise InputError(f"{path} is not a tar: {error}; get it again, and then: rglcd data use") from None
                index.problem = f"is damaged behind byte {end:,}: {error}"
                return index
            stream.seek(min(end, num_bytes))  # a header may say any size
            if stream.read(_BLOCK) != bytes(_BLOCK):
                is_tar = end > begin or begin == 0
                index.problem = "was cut: it has no end" if is_tar else f"holds something at byte {begin:,}, behind its end, that is no tar"
                return index
            begin = _next_begin(stream)
    return index


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension, as webdataset has them: the key ends at the name's first dot, and its folder is part of it."""
    folder, _, name = name.rpartition("/")
    stem, _, extension = name.partition(".")
    return (posixpath.normpath(f"{folder}/{stem}") if folder and stem else stem), extension.lower()


def _members(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The members of the tar that begins where ``stream`` stands, each with the place where the next header is to be.

    Raises ``tarfile.TarError`` for all that a header can make tarfile do: it follows sparse maps and PAX records without a check.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=BoundedHeader) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps one for each of however many there are
                if member.size < 0:  # a PAX record overrules the header that was checked
                    raise tarfile.ReadError(f"member {member.name[:80]!r} says that it has {member.size} bytes")
                yield member, tar.offset
    except (tarfile.TarError, OSError, MemoryError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from None


def _next_begin(stream: BinaryIO) -> int | None:
    """Where, behind blocks of zeros, something else begins; None at the end of the file."""
    while chunk := stream.read(_CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            return (stream.tell() - len(rest)) // _BLOCK * _BLOCK
    return None
