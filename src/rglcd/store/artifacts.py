"""Where artifacts lie: a folder of this machine, or an object store with the manifest alone on this machine.

In a store everything is written once and never replaced, so publishers cannot harm one another and a manifest that git or
DVC remembers leads to its bytes for good. ``<uri>`` is the artifact's folder in the store:

    <uri>/files/<sha256>/<name>    a file, addressed by its content
    <uri>/manifests/<key>.json     what the computation of that key made; creating it is the commit
    <uri>/manifest.json            the manifest published last: what ``<uri>`` by itself means
    <uri>/parts/<key>/<record>     records of units of work that parts of that computation have finished

What is read from a store is copied to a view: a local folder for one manifest, in which a file appears when it is first wanted.
Whoever reads a view holds it, or it may go (:mod:`rglcd.store.local_cache`).
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

from rglcd import progress
from rglcd.errors import InputError, TryAgain
from rglcd.store.files import (
    cache_folder,
    create_object,
    download,
    fetch_folder,
    is_remote,
    list_folder,
    list_objects,
    read_object,
    store_in_force,
    upload,
    write_object,
)
from rglcd.store.local_cache import COMPLETE, held, make_room, passed_through
from rglcd.store.locks import claimed
from rglcd.store.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    alteration,
    digest_of,
    manifest_text,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from rglcd.store.work_unit import RECORDS, files_of, finished_unit, hold_unit, is_record

_TRANSFERS: Final = 8  # at a time
_LOOK_EVERY: Final = 1.0  # seconds between looks for units that a stage has finished


@dataclass(frozen=True)
class ArtifactStore:
    """One artifact's folder in an object store."""

    uri: str

    def made(self, key: str) -> Manifest | None:
        """What the computation called ``key`` published here, if it did. One that the store has damaged is as if it had not been."""
        content = read_object(place := f"{self.uri}/manifests/{key}.json")
        return None if content is None or not _is_manifest(content) else parse_manifest(content.decode(), where=place, made_by="again")

    def current(self) -> Manifest | None:
        """What was published here last."""
        return self._manifest(MANIFEST)

    def publish(self, folder: Path, manifest: Manifest, *, already: Iterable[str] = ()) -> Manifest:
        """Upload the files of ``folder``, verify them, and commit ``manifest``; returns the manifest that stands.

        That is another one where another worker has published the same computation first. ``already`` names files that
        parts of the computation have uploaded.
        """
        held = set(already)
        self.upload({name: entry for name, entry in manifest.files.items() if name not in held}, folder)
        mine = manifest_text(replace(manifest, store=self.uri))
        place = f"{self.uri}/manifests/{manifest.key}.json"
        standing = create_object(place, mine.encode(), is_whole=_is_manifest).decode()
        self.point_to(found := parse_manifest(standing, where=place, made_by=manifest.stage))
        return found

    def point_to(self, manifest: Manifest) -> None:
        """Make ``manifest``, which is committed, the current one."""
        text = manifest_text(manifest).encode()
        if read_object(f"{self.uri}/{MANIFEST}") != text:
            write_object(f"{self.uri}/{MANIFEST}", text)

    def upload(self, entries: dict[str, FileEntry], folder: Path) -> None:
        """Put files of ``folder`` where their content says; those that are there and whole are left alone."""
        _each(lambda name: upload(folder / name, self._address(name, entries[name]), entries[name]), entries, task="upload")

    def fetch(self, name: str, entry: FileEntry, folder: Path) -> None:
        """Bring the file called ``name`` to ``folder``, verified."""
        download(self._address(name, entry), folder / name, entry)

    # Units of work of a computation that several parts share.

    def finish_unit(self, key: str, record: str, content: bytes) -> bytes:
        """Record that a unit's files are here; returns the record that stands, another worker's if it was first."""
        return create_object(f"{self.uri}/parts/{key}/{record}", content, is_whole=is_record)

    def finished_units(self, key: str) -> dict[str, bytes]:
        """The records of the units that are finished, by name."""
        folder = f"{self.uri}/parts/{key}"
        records = {name: read_object(f"{folder}/{name}") for name in list_objects(folder)}
        return {name: content for name, content in records.items() if content is not None and is_record(content)}

    def _manifest(self, name: str) -> Manifest | None:
        place = f"{self.uri}/{name}"
        content = read_object(place)
        # What does not parse says itself what is wrong with it: bytes that are no UTF-8 become text that is no manifest.
        return None if content is None else parse_manifest(content.decode(errors="replace"), where=place, made_by="again")

    def _address(self, name: str, entry: FileEntry) -> str:
        return f"{self.uri}/files/{entry.sha256}/{PurePosixPath(name).name}"


class Authority(StrEnum):
    """Who says what an artifact is now, where both a folder and a store could: whichever the artifact was named by."""

    FOLDER = "folder"
    STORE = "store"


@dataclass(frozen=True)
class Place:
    """Where one artifact lies. ``folder`` holds its manifest, and its files too unless ``uri`` names a store's folder for them."""

    folder: Path
    uri: str | None
    authority: Authority = Authority.FOLDER

    @classmethod
    def of(cls, artifact: str, given: Path | str) -> "Place":
        """The place that ``given`` names: a URL, or a folder, whose bytes go to the store that the environment names if any."""
        if is_remote(given):
            uri = str(given).rstrip("/")
            folder = cache_folder(beside=Path("artifacts") / artifact) / f"{artifact}-at-{_mark(uri)}"
            return cls(folder, uri, Authority.STORE)
        store = store_in_force()
        return cls(Path(given), None if store is None else f"{store.rstrip('/')}/{artifact}")

    def read(self, *, made_by: str) -> Manifest:
        """The artifact's manifest: the local one, or else the store's current one. Raises :class:`InputError` without either."""
        if self.uri is not None and (self.authority is Authority.STORE or not (self.folder / MANIFEST).is_file()):
            current = ArtifactStore(self.uri).current()
            if current is not None:
                return current
            raise InputError(f"{self.uri} holds nothing that was published; make it with: rglcd run {made_by}")
        return read_manifest(self.folder, made_by=made_by)

    def readable(self, manifest: Manifest) -> Path:
        """The folder in which the files of ``manifest`` are to be read: here, or a view of the store's."""
        if manifest.store is None:
            return self.folder
        return cache_folder(beside=self.folder) / f"{manifest.artifact}-{_mark(manifest_text(manifest))}"

    def mirror(self, manifest: Manifest, *, kept: Collection[str]) -> None:
        """Put ``manifest``, which stands in the store, into the folder, with the files that ``kept`` matches, in place of what is there."""
        aside, retired = (self.folder.with_name(f".{self.folder.name}.{word}") for word in ("mirror", "retired"))
        for stale in (aside, retired):
            shutil.rmtree(stale, ignore_errors=True)
        aside.mkdir(parents=True)
        names = manifest.matching(kept)
        with held(view := self.readable(manifest)):
            fetch_view(view, manifest, wanted=lambda name: name in names)
            for name in names:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(view / name, aside / name)
        write_manifest(aside, manifest)
        if self.folder.exists():
            self.folder.rename(retired)
        aside.rename(self.folder)
        shutil.rmtree(retired, ignore_errors=True)


# --- units of work -------------------------------------------------------------------------------


@contextmanager
def units_handed_in(store: ArtifactStore | None, key: str, folder: Path) -> Iterator[None]:
    """While the computation ``key`` works in ``folder``, hand each unit that it finishes in to ``store``, in the background.

    Before it begins, the units that other workers have handed in are made to count as finished. So a worker that is
    killed loses one unit, whatever becomes of its disk, and of two that make the same unit the first one's stands.
    """
    if store is None:
        yield
        return
    for name, content in store.finished_units(key).items():
        if finished_unit(folder / name) is None:
            hold_unit(folder / name, content)
    handed, stop = set[str](), threading.Event()

    def hand_in() -> None:
        for record in sorted(folder.glob(RECORDS)):
            if record.name not in handed:
                _hand_in(store, key, record)
                handed.add(record.name)

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY):
            with suppress(TryAgain, InputError, OSError):  # tried again at the end, where it can be said
                hand_in()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    hand_in()


def _hand_in(store: ArtifactStore, key: str, record: Path) -> None:
    content = record.read_bytes()
    entries = files_of(json.loads(content))
    store.upload({name: entry for name, entry in entries.items() if (record.parent / name).is_file()}, record.parent)
    standing = store.finish_unit(key, record.name, content)
    if standing != content:
        hold_unit(record, standing)


# --- views ---------------------------------------------------------------------------------------


def fetch_view(folder: Path, manifest: Manifest, *, wanted: Callable[[str], bool]) -> None:
    """Make ``folder`` a view of ``manifest`` in which the files that are ``wanted`` stand already."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).is_file():
        write_manifest(folder, manifest)
    _each(lambda name: local_file(folder, manifest, name), [name for name in manifest.files if wanted(name)], task="fetch")


def local_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The file called ``name`` of the artifact in ``folder``; in a view it is fetched if it is missing or altered.

    Of several processes that want it one fetches it. In a plain folder the path comes as it is: its reader verifies it.
    """
    path = folder / name
    if manifest.store is None:
        return path
    with claimed(folder / f".{name.replace('/', '_')}.lock", wait=True):
        if alteration(path, manifest.files[name]) is not None:
            make_room(folder.parent, manifest.files[name].bytes)
            ArtifactStore(manifest.store).fetch(name, manifest.files[name], folder)
    return path


@contextmanager
def file_in_passing(folder: Path, manifest: Manifest, name: str) -> Iterator[Path]:
    """:func:`local_file` for the one time that it is read: a view need not keep it afterwards."""
    if manifest.store is None:
        yield folder / name
        return
    with passed_through(folder, name):
        yield local_file(folder, manifest, name)


def source_view(uri: str) -> tuple[Path, str]:
    """The local copy of the source folder at ``uri``, and a digest of what the store lists there: names, sizes, versions.

    The copy is made, or finished, by :func:`fetch_source`.
    """
    digest = digest_of(list_folder(uri))
    return cache_folder(beside=Path("artifacts") / "source") / f"source-{digest[:12]}", digest


def fetch_source(uri: str, view: Path) -> None:
    """Copy the source folder at ``uri`` to ``view``, unless that was done before."""
    done = view.with_name(f"{view.name}{COMPLETE}")
    with claimed(view.with_name(f".{view.name}.fetching"), wait=True):
        if not (done.is_file() and view.is_dir()):
            make_room(view.parent, sum(int(version.split()[0]) for version in list_folder(uri).values()))
            fetch_folder(uri, view, keep=lambda _: True)
            done.touch()


def _is_manifest(content: bytes) -> bool:
    """Whether ``content`` is a manifest with every bit as it was sealed."""
    try:
        parse_manifest(content.decode(errors="replace"), where="", made_by="")
    except InputError:
        return False
    return True


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _each(act: Callable[[str], object], names: Iterable[str], *, task: str) -> None:
    """``act`` on each name, several at a time; the first failure is raised when those in flight have ended."""
    todo = list(names)
    if not todo:
        return
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for _ in progress.track(pool.map(act, todo), task=task, unit="files", total=len(todo)):
            pass
