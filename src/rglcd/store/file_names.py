"""Names of files that others wrote down (manifests, records, listings), checked before any path is joined.

A manifest may come from anybody's store, and its seal is a digest without a key: it says that the text is whole, not that it is well meant.
"""

import unicodedata
from collections.abc import Iterable

from rglcd.errors import InputError

_LONGEST_PART = 255
"""Bytes of one part of a path: the limit of ext4, XFS, APFS and NTFS."""
_LONGEST_NAME = 1024
"""Bytes of a whole name: an object store's limit for a key."""


def check_names(names: Iterable[str], *, reserved: frozenset[str] = frozenset()) -> None:
    """Raise :class:`InputError` unless each of ``names`` is the relative POSIX path of a file of its own below any folder.

    Refused are what climbs out or means another place (absolute, ``..``, a backslash, a drive), what is not in its shortest form, what
    no disk holds (NUL and other control characters, bytes that are no UTF-8, too long), names that a disk may take for one another, a
    name that is another's folder, and those that are ``reserved``.
    """
    seen: set[str] = set()
    for name in names:
        if (fault := _fault(name)) is not None:
            raise InputError(f"the file name {name!r} {fault}")
        if name in reserved:
            raise InputError(f"the file name {name!r} is that of another file's place")
        if (same := _as_a_disk_has_it(name)) in seen:
            raise InputError(f"the file name {name!r} is there twice")
        seen.add(same)
    for name in seen:
        parts = name.split("/")
        if any("/".join(parts[:length]) in seen for length in range(1, len(parts))):
            raise InputError(f"the file name {name!r} lies below another file")


def check_plain_names(names: Iterable[str]) -> None:
    """Raise :class:`InputError` unless each of ``names`` is that of a file directly in any folder: :func:`check_names` without ``/``."""
    listed = list(names)
    check_names(listed)
    for name in listed:
        if "/" in name:
            raise InputError(f"the file name {name!r} lies in a folder of its own")


def _fault(name: str) -> str | None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is no UTF-8"
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of the folder"
    if "\\" in name or name[1:2] == ":":
        return "is another system's path"
    if not all(parts) or "." in parts:
        return "is not in its shortest form"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "holds a control character"
    if size > _LONGEST_NAME or any(len(part.encode()) > _LONGEST_PART for part in parts):
        return "is too long"
    return None


def _as_a_disk_has_it(name: str) -> str:
    """Disks that compose letters with their accents (APFS) take two spellings for one name."""
    return unicodedata.normalize("NFC", name)
