"""Where the results of one artifact lie in a folder: the one in force, those under way, and earlier ones.

    <parent>/<name>/                      the result in force: what people and DVC open
    <parent>/.work/<name>-<key>/          under way, of the computation whose key begins so; finished once it has a manifest
    <parent>/.work/<name>-<key>.json      with which sections
    <parent>/.work/<name>-<key>.making    locked by the one process that makes it as a whole, its leader
    <parent>/.work/<name>-<key>.lock      locked, together, by every process that works there: leader, ranks, workers
    <parent>/.work/<name>.moving          locked for the moment in which a result moves
    <parent>/.kept/<name>-<key>/          finished, and no longer in force

A result moves by renames: from ``.work`` or ``.kept`` to its name, and what was there to ``.kept`` before that. A process that is
killed in between leaves the name empty and both results whole; the same command puts its own in force. Nothing is removed here.
Whoever reads a result reads its files by links of its own (:func:`folder_of_links`), so what moves meanwhile is still there for it.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Final
from uuid import uuid4

from rglcd.errors import InputError
from rglcd.store.locks import exclusive_lock, shared_lock, try_exclusive_lock
from rglcd.store.manifest import Manifest, read_manifest
from rglcd.store.staging import flush, flush_folder

WORK: Final = ".work"
KEPT: Final = ".kept"
LOCK: Final = ".lock"
MAKING: Final = ".making"
_DIGITS: Final = 12
_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
"""How a folder says that it may only be read: another user's, or a volume that is mounted so."""


@dataclass(frozen=True)
class Places:
    """The places of the artifact whose result in force is the folder ``in_force``."""

    in_force: Path

    def work(self, key: str) -> Path:
        """Where the computation called ``key`` works until it is published, and goes on after a kill."""
        return self.in_force.parent / WORK / self._name(key)

    def kept(self, key: str) -> Path:
        """Where its result lies when another is in force."""
        return self.in_force.parent / KEPT / self._name(key)

    def results(self, key: str) -> Iterator[tuple[Path, Manifest]]:
        """The results called ``key``, kept or in force, with their manifests; what cannot be read is none. One of them may be cut."""
        # In this order: one that is put in force between the two looks is seen by the second.
        for folder in (*sorted(self.kept(key).parent.glob(f"{escape(self.kept(key).name)}*")), self.in_force):
            manifest = manifest_in(folder)
            if manifest is not None and manifest.key == key:
                yield folder, manifest

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """While no other process makes the same result as a whole; what the one before it made is then found."""
        lock = self._beside_work(key, MAKING)
        with ExitStack() as stack:
            if not stack.enter_context(try_exclusive_lock(lock)):
                print(f"rglcd: another process is making {self.in_force} ({key[:_DIGITS]}); this one waits for it", file=sys.stderr)
                stack.enter_context(exclusive_lock(lock))
            stack.callback(lock.unlink, missing_ok=True)
            yield

    @contextmanager
    def working(self, key: str) -> Iterator[Path]:
        """The folder to work in, while it is in use: `rglcd clean` leaves it alone."""
        with shared_lock(lock := self._beside_work(key, LOCK)):
            (folder := self.work(key)).mkdir(parents=True, exist_ok=True)
            yield folder
        with try_exclusive_lock(lock) as was_the_last:
            if was_the_last:
                lock.unlink(missing_ok=True)

    def put_in_force(self, folder: Path) -> None:
        """Let the finished result in ``folder`` be the one in force; what was, is kept. Nothing happens if another process has done it."""
        if folder.exists():
            flush_folder(folder)
        with self.at_rest():
            if not folder.exists():
                return
            if self.in_force.exists():
                _move(self.in_force, self._free_place())
            _move(folder, self.in_force)

    def _free_place(self) -> Path:
        """Where to keep what is in force. A result whose key is kept already, and one that nobody can read, get names of their own."""
        manifest = manifest_in(self.in_force)
        place = self.kept(manifest.key if manifest is not None else "unreadable")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place.with_name(f"{place.name}-{uuid4().hex[:8]}") if place.exists() or manifest is None else place

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """While no result of this artifact moves."""
        lock = exclusive_lock(place := self.in_force.parent / WORK / f"{self.in_force.name}.moving")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            # Nothing of this process's moves there; what others move while it makes its links is said by whoever misses it.
        try:
            yield
        finally:
            lock.release()

    def _beside_work(self, key: str, suffix: str) -> Path:
        work = self.work(key)
        work.parent.mkdir(parents=True, exist_ok=True)
        return work.with_name(f"{work.name}{suffix}")

    def _name(self, key: str) -> str:
        return f"{self.in_force.name}-{key[:_DIGITS]}"


def _move(folder: Path, target: Path) -> None:
    folder.rename(target)
    flush(target.parent)
    flush(folder.parent)


def description_of(work: Path) -> Path:
    """The file beside a work folder that says with which sections it works."""
    return work.with_name(f"{work.name}.json")


def manifest_in(folder: Path) -> Manifest | None:
    """The manifest of the result in ``folder``; None where there is none, or one that cannot be read."""
    try:
        return read_manifest(folder, made_by="")
    except InputError:
        return None


@contextmanager
def folder_of_links(*, beside: Path) -> Iterator[Path]:
    """An empty folder for :func:`link_file`, in ``.work`` beside the artifact ``beside``, for as long as this process reads there."""
    with ExitStack() as stack:
        try:
            (beside.parent / WORK).mkdir(parents=True, exist_ok=True)
            folder = Path(mkdtemp(prefix=f"{beside.name}.read-", dir=beside.parent / WORK))
        except OSError:  # beside an artifact that may only be read
            folder = Path(mkdtemp(prefix="rglcd-"))
        lock = folder.with_name(f"{folder.name}{LOCK}")
        stack.callback(lock.unlink, missing_ok=True)
        stack.enter_context(exclusive_lock(lock))
        stack.callback(rmtree, folder, ignore_errors=True)
        yield folder


def link_file(path: Path, link: Path) -> None:
    """Let ``link`` be the file at ``path``, if there is one: a hard link, or a symbolic one, which follows no move."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), link)
    except FileNotFoundError:
        pass  # whoever reads it says what is missing
    except OSError:
        link.symlink_to(path.resolve())
