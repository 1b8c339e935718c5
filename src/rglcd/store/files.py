"""Files and folders of an object store: uploaded, downloaded and listed, each compared with what it must be.

Whatever is uploaded is read back and compared before anyone relies on it: stores have lost parts of an upload without an error
(mlcommons/storage issue 593), and neither its size nor its metadata showed it.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final
from uuid import uuid4

from rglcd.errors import InputError, TryAgain
from rglcd.store.connection import NUM_ATTEMPTS, attempts, chunks, found_below, is_local, is_s3, open_url, with_retries
from rglcd.store.listed_objects import damage_in
from rglcd.store.manifest import FileEntry, verify_file
from rglcd.store.probe import open_to_write
from rglcd.store.staging import STAGING, flush, rename_flushed
from rglcd.store.transfers import for_each_file

_PART: Final = 32 << 20  # bytes of one part of an upload


def is_remote(place: str | Path) -> bool:
    """Whether ``place`` is a URL (``s3://...``), not a folder of this machine."""
    return "://" in str(place)


def upload(path: Path, uri: str, entry: FileEntry) -> None:
    """Put the file at ``path`` at ``uri``, unless it is there; returns when what is there reads as ``entry`` says.

    Raises :class:`TryAgain` when the store keeps failing: nothing local is lost, and the same command goes on.
    """
    filesystem, target, _ = open_to_write(uri)
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
    try:
        problem = _fetch(filesystem, source, path, entry.bytes, problem_in=lambda copy: verify_file(copy, entry))
    except FileNotFoundError:
        raise InputError(f"{uri} is missing from the store, and a manifest names it; make it again") from None
    if problem is not None:
        raise InputError(f"{uri} {problem}: the store's copy is damaged; delete it there and make it again")


def list_folder(uri: str) -> dict[str, str]:
    """What lies below ``uri``: a line of size and version (ETag on S3) for each name, in order.

    Raises :class:`InputError` when nothing does, or when a name climbs out of the folder or is that of a folder too.
    """
    listing = {}
    for name, details in found_below(uri).items():
        if ".." in PurePosixPath(name).parts:
            raise InputError(f"{uri} holds {name}, which climbs out of the folder")
        listing[name] = f"{details['size']} {str(details.get('ETag', '')).strip(chr(34))}".strip()
    if not listing:
        raise InputError(f"{uri} holds no files")
    both = next((parent for name in listing for parent in PurePosixPath(name).parents if parent.as_posix() in listing), None)
    if both is not None:
        raise InputError(f"{uri} holds {both} and objects below {both}/, which no disk can; rename one of them")
    return listing


def fetch_folder(uri: str, destination: Path, *, keep: Callable[[str], bool]) -> list[str]:
    """Copy the files below ``uri`` whose names ``keep`` wants to ``destination``, and return the names.

    A file that ``destination`` has in the size that is listed stays: the folder is to be for this listing alone.
    Nothing says what these files must be but the store: sizes are compared, and what else it says (:mod:`rglcd.store.listed_objects`).
    Raises :class:`InputError` for a file that is damaged there, :class:`TryAgain` for one that changes meanwhile, and when the store
    keeps failing.
    """
    filesystem, root = open_url(uri)
    listing = {name: version for name, version in list_folder(uri).items() if keep(name)}
    for_each_file(lambda name: _fetch_listed(filesystem, f"{root}/{name}", destination / name, listing[name]), listing, task="fetch")
    return list(listing)


def _fetch_listed(filesystem: Any, source: str, path: Path, version: str) -> None:
    size, _, etag = version.partition(" ")
    if path.is_file() and path.stat().st_size == int(size):
        return  # a fetch that was killed had brought it, and looked at it
    try:
        problem = _fetch(filesystem, source, path, int(size), problem_in=lambda copy: damage_in(copy, filesystem, source, etag=etag))
    except FileNotFoundError:
        raise TryAgain(f"{source} was removed while its folder was read; run the same command again") from None
    if problem is not None:
        raise InputError(f"{source} {problem}: it is damaged there")


def _fetch(filesystem: Any, source: str, path: Path, size: int, *, problem_in: Callable[[Path], str | None]) -> str | None:
    """Bring the object at ``source`` to ``path``: staged, looked at, then renamed. Returns what is wrong with it in the store.

    Two copies that are wrong in the same way are as the store has it; one may have been damaged on its way.
    """
    staging, problem = _staging_of(path), None
    try:
        for _ in attempts():
            with staging.open("wb") as stream:
                for chunk in chunks(filesystem, source, size):
                    stream.write(chunk)
            before, problem = problem, problem_in(staging)
            if problem is None:
                flush(staging)
                rename_flushed(staging, path)
                return None
            if problem == before:
                break
        return problem
    finally:
        staging.unlink(missing_ok=True)


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
    """A name to download to, in the folder of ``path``, made if need be. That name is no part of it: it may be as long as a disk takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{uuid4().hex}{STAGING}")
