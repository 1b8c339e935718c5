"""Files and folders of an object store: uploaded, downloaded and listed, each compared with what it must be.

Whatever is uploaded is read back and compared before anyone relies on it: stores have lost parts of an upload without an error
(mlcommons/storage issue 593), and neither its size nor its metadata showed it.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final
from uuid import uuid4

from rglcd.errors import InputError, TryAgain
from rglcd.store.connection import NUM_ATTEMPTS, attempts, chunks, found_below, is_local, is_s3, make_parent, open_url, with_retries
from rglcd.store.manifest import FileEntry, verify_file
from rglcd.store.staging import STAGING, flush, rename_flushed

_PART: Final = 32 << 20  # bytes of one part of an upload
_MD5: Final = re.compile(r"[0-9a-f]{32}")  # the ETag of an object put in one piece; that of one put in parts holds a dash


def is_remote(place: str | Path) -> bool:
    """Whether ``place`` is a URL (``s3://...``), not a folder of this machine."""
    return "://" in str(place)


def upload(path: Path, uri: str, entry: FileEntry) -> None:
    """Put the file at ``path`` at ``uri``, unless it is there; returns when what is there reads as ``entry`` says.

    Raises :class:`TryAgain` when the store keeps failing: nothing local is lost, and the same command goes on.
    """
    filesystem, target = open_url(uri)
    make_parent(filesystem, target)
    for _ in attempts():
        if _holds(filesystem, target, entry):
            return
        with_retries(lambda: _put(filesystem, path, target), what=uri)
    if not _holds(filesystem, target, entry):
        raise TryAgain(f"{uri} was written {NUM_ATTEMPTS} times and never read as it was written; run the same command again")


def download(uri: str, path: Path, entry: FileEntry) -> None:
    """Bring the object at ``uri`` to ``path``: staged, compared with ``entry``, then renamed.

    Raises :class:`InputError` when it is missing or is not what ``entry`` says, :class:`TryAgain` when the store keeps failing.
    """
    filesystem, source = open_url(uri)
    staging = _staging_of(path)
    try:
        for _ in attempts():
            with staging.open("wb") as stream:
                for chunk in chunks(filesystem, source, entry.bytes):
                    stream.write(chunk)
            flush(staging)
            if verify_file(staging, entry) is None:
                rename_flushed(staging, path)
                return
        raise InputError(f"{uri} {verify_file(staging, entry)}: the store's copy is damaged; delete it there and make it again")
    except FileNotFoundError:
        raise InputError(f"{uri} is missing from the store, and a manifest names it; make it again") from None
    finally:
        staging.unlink(missing_ok=True)


def list_folder(uri: str) -> dict[str, str]:
    """What lies below ``uri``: a line of size and version (ETag on S3) for each name, in order.

    Raises :class:`InputError` when nothing does, or when a name climbs out of the folder.
    """
    listing = {}
    for name, details in found_below(uri).items():
        if ".." in PurePosixPath(name).parts:
            raise InputError(f"{uri} holds {name}, which climbs out of the folder")
        listing[name] = f"{details['size']} {str(details.get('ETag', '')).strip(chr(34))}".strip()
    if not listing:
        raise InputError(f"{uri} holds no files")
    return listing


def fetch_folder(uri: str, destination: Path, *, keep: Callable[[str], bool]) -> list[str]:
    """Copy the files below ``uri`` whose names ``keep`` wants to ``destination``, and return the names.

    Nothing says what these files must be but the store's listing: sizes are compared, and MD5 where the store's ETag is one.
    """
    filesystem, root = open_url(uri)
    names = []
    for name, version in list_folder(uri).items():
        if keep(name):
            _fetch_listed(filesystem, f"{root}/{name}", destination / name, version)
            names.append(name)
    return names


def _fetch_listed(filesystem: Any, source: str, path: Path, version: str) -> None:
    size, _, etag = version.partition(" ")
    staging = _staging_of(path)
    for _ in attempts():
        state = hashlib.md5(usedforsecurity=False)
        with staging.open("wb") as stream:
            for chunk in chunks(filesystem, source, int(size)):
                state.update(chunk)
                stream.write(chunk)
        if not _MD5.fullmatch(etag) or state.hexdigest() == etag:
            flush(staging)
            rename_flushed(staging, path)
            return
    raise InputError(f"{source} has md5 {state.hexdigest()}, and the store lists {etag}: it is damaged there")


def _holds(filesystem: Any, path: str, entry: FileEntry) -> bool:
    """Whether ``path`` reads, byte for byte, as ``entry`` says."""
    try:
        if with_retries(lambda: filesystem.info(path), what=path)["size"] != entry.bytes:
            return False
        state = hashlib.sha256()
        for chunk in chunks(filesystem, path, entry.bytes):
            state.update(chunk)
    except FileNotFoundError:
        return False
    return state.hexdigest() == entry.sha256


def _put(filesystem: Any, path: Path, target: str) -> None:
    if is_local(filesystem):
        staging = Path(f"{target}.{uuid4().hex[:8]}{STAGING}")
        shutil.copyfile(path, staging)
        flush(staging)
        rename_flushed(staging, Path(target))
    elif is_s3(filesystem):
        filesystem.put_file(str(path), target, chunksize=_PART)
    else:
        filesystem.put_file(str(path), target)


def _staging_of(path: Path) -> Path:
    """A name to download to, in the folder of ``path``, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}{STAGING}")
