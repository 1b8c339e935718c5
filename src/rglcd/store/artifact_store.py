"""One artifact's folder in an object store: a folder for each result, named by its key.

Everything but the manifest published last is written once and never replaced, so publishers cannot harm one another and a manifest
that git or DVC remembers leads to its bytes until `rglcd clean` removes its key. ``<uri>`` is the artifact's folder:

    <uri>/<key>/files/<sha256>/<name>    a file, addressed by its content
    <uri>/<key>/manifest.json            what the computation of that key made; creating it is the commit
    <uri>/<key>/parts/<record>           records of shard tasks that parts of that computation have finished
    <uri>/manifest.json                  the manifest published last: what ``<uri>`` without a key means
"""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from rglcd.errors import InputError, TryAgain
from rglcd.store import probe
from rglcd.store.files import download, upload
from rglcd.store.manifest import MANIFEST, FileEntry, Manifest, manifest_text, parse_manifest
from rglcd.store.object_store import create_object, list_objects, read_object, write_object
from rglcd.store.shard_tasks import RECORDS, WHOLE, Part, files_of, finished_task, is_record, record_elsewhere
from rglcd.store.transfers import for_each_file

_LOOK_EVERY: Final = 1.0  # seconds between looks for tasks that a stage has finished


@dataclass(frozen=True)
class ArtifactStore:
    """One artifact's folder in an object store."""

    uri: str

    def result(self, key: str) -> str:
        """The folder of the result called ``key``; its manifest says it as its ``store``."""
        return f"{self.uri}/{key}"

    def made(self, key: str) -> Manifest | None:
        """What the computation called ``key`` published here, if it did. One that the store has damaged is as if it had not been."""
        content = read_object(place := f"{self.result(key)}/{MANIFEST}")
        return None if content is None or not _is_manifest(content) else parse_manifest(content.decode(), where=place, made_by="again")

    def current(self) -> Manifest | None:
        """What was published here last."""
        place = f"{self.uri}/{MANIFEST}"
        content = read_object(place)
        # What does not parse says itself what is wrong with it: bytes that are no UTF-8 become text that is no manifest.
        return None if content is None else parse_manifest(content.decode(errors="replace"), where=place, made_by="again")

    def publish(self, folder: Path, manifest: Manifest, *, already: Iterable[str] = ()) -> Manifest:
        """Upload the files of ``folder``, verify them, and commit ``manifest``; returns the manifest that stands.

        That is another one where another worker has published the same computation first. ``already`` names files that
        parts of the computation have uploaded.
        """
        uploaded, folder_there = set(already), self.result(manifest.key)
        upload_files({name: entry for name, entry in manifest.files.items() if name not in uploaded}, folder, to=folder_there)
        mine = manifest_text(replace(manifest, store=folder_there))
        standing = create_object(place := f"{folder_there}/{MANIFEST}", mine.encode(), is_whole=_is_manifest).decode()
        self.point_to(found := parse_manifest(standing, where=place, made_by=manifest.stage))
        return found

    def point_to(self, manifest: Manifest) -> None:
        """Make ``manifest``, which is committed, the current one."""
        text = manifest_text(manifest).encode()
        if read_object(f"{self.uri}/{MANIFEST}") != text:
            write_object(f"{self.uri}/{MANIFEST}", text)

    def finish_task(self, key: str, record: str, content: bytes) -> bytes:
        """Record that a shard task's files are here; returns the record that stands, another worker's if it was first."""
        return create_object(f"{self.result(key)}/parts/{record}", content, is_whole=is_record)

    def finished_tasks(self, key: str) -> dict[str, bytes]:
        """The records of the shard tasks that are finished, by name."""
        folder = f"{self.result(key)}/parts"
        records = {name: read_object(f"{folder}/{name}") for name in list_objects(folder)}
        return {name: content for name, content in records.items() if content is not None and is_record(content)}


def upload_files(entries: dict[str, FileEntry], folder: Path, *, to: str) -> None:
    """Put files of ``folder`` where their content says in the result's folder ``to``; those that are there and whole are left alone."""
    for_each_file(lambda name: upload(folder / name, _address(to, name, entries[name]), entries[name]), entries, task="upload")


def fetch_file(name: str, entry: FileEntry, folder: Path, *, of: str) -> None:
    """Bring the file called ``name`` of the result in the store's folder ``of`` to ``folder``, verified."""
    download(_address(of, name, entry), folder / name, entry)


def _address(result: str, name: str, entry: FileEntry) -> str:
    return f"{result}/files/{entry.sha256}/{PurePosixPath(name).name}"


def check_before_work(store: ArtifactStore | None, part: Part = WHOLE) -> None:
    """Raise :class:`InputError` if ``store`` cannot take what ``part`` of a computation makes, :class:`TryAgain` if it does not answer."""
    if store is not None:
        probe.check_before_work(store.uri, num_writers=part.count)


@contextmanager
def uploading_tasks(store: ArtifactStore | None, key: str, folder: Path) -> Iterator[None]:
    """While the computation ``key`` works in ``folder``, upload each shard task that it finishes to ``store``, in the background.

    Before it begins, the tasks that other workers have uploaded are made to count as finished. So a worker that is
    killed loses one shard, whatever becomes of its disk, and of two that make the same shard the first one's stands.
    """
    if store is None:
        yield
        return
    for name, content in store.finished_tasks(key).items():
        if finished_task(folder / name) is None:
            record_elsewhere(folder / name, content)
    uploaded, stop = set[str](), threading.Event()

    def upload_finished() -> None:
        for record in sorted(folder.glob(RECORDS)):
            if record.name not in uploaded:
                _upload_task(store, key, record)
                uploaded.add(record.name)

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY):
            with suppress(TryAgain, InputError, OSError):  # tried again at the end, where it can be said
                upload_finished()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    upload_finished()


def _upload_task(store: ArtifactStore, key: str, record: Path) -> None:
    content = record.read_bytes()
    entries = files_of(json.loads(content))
    at_hand = {name: entry for name, entry in entries.items() if (record.parent / name).is_file()}
    upload_files(at_hand, record.parent, to=store.result(key))
    standing = store.finish_task(key, record.name, content)
    if standing != content:
        record_elsewhere(record, standing)


def _is_manifest(content: bytes) -> bool:
    """Whether ``content`` is a manifest with every bit as it was sealed."""
    try:
        parse_manifest(content.decode(errors="replace"), where="", made_by="")
    except InputError:
        return False
    return True
