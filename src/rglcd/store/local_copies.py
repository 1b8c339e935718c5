"""Local copies of what lies in a store: of an artifact's files, each fetched when it is first wanted, or of a whole source folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rglcd.store.artifact_store import fetch_file
from rglcd.store.environment import cache_folder
from rglcd.store.files import fetch_folder, list_folder
from rglcd.store.local_cache import COMPLETE, read_once, reserve
from rglcd.store.locks import exclusive_lock
from rglcd.store.manifest import MANIFEST, Manifest, digest_of, verify_file, write_manifest
from rglcd.store.transfers import for_each_file


def fetch_files(copy: Path, manifest: Manifest, *, wanted: Callable[[str], bool]) -> None:
    """Make the folder ``copy`` a local copy of ``manifest`` in which the files that are ``wanted`` stand already."""
    copy.mkdir(parents=True, exist_ok=True)
    if not (copy / MANIFEST).is_file():
        write_manifest(copy, manifest)
    for_each_file(lambda name: local_file(copy, manifest, name), [name for name in manifest.files if wanted(name)], task="fetch")


def local_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The file called ``name`` of the artifact in ``folder``; in a local copy it is fetched if it is missing or altered.

    Of several processes that want it one fetches it. In a plain folder the path comes as it is: its reader verifies it.
    """
    path, entry = folder / name, manifest.files[name]
    if manifest.store is None:
        return path
    with exclusive_lock(folder / f".{name.replace('/', '_')}.lock"):
        if verify_file(path, entry) is not None:
            reserve(folder, entry.bytes)
            fetch_file(name, entry, folder, of=manifest.store)
    return path


@contextmanager
def file_read_once(folder: Path, manifest: Manifest, name: str) -> Iterator[Path]:
    """:func:`local_file` for the one time that it is read: a local copy need not keep it afterwards."""
    if manifest.store is None:
        yield folder / name
        return
    with read_once(folder, name):
        yield local_file(folder, manifest, name)


def source_copy(uri: str, *, wanted: Callable[[str], bool]) -> tuple[Path, str]:
    """Where the local copy of what is ``wanted`` of the source folder at ``uri`` lies, and a digest of what the store lists of it:
    names, sizes, versions. The copy is made, or finished, by :func:`fetch_source`.
    """
    digest = digest_of(_listed(uri, wanted))
    return cache_folder(beside=Path("artifacts") / "source") / f"source-{digest[:12]}", digest


def fetch_source(uri: str, copy: Path, *, wanted: Callable[[str], bool]) -> None:
    """Copy what is ``wanted`` of the source folder at ``uri`` to ``copy``, unless that was done before."""
    done = copy.with_name(f"{copy.name}{COMPLETE}")
    with exclusive_lock(copy.with_name(f".{copy.name}.fetching")):
        if not (done.is_file() and copy.is_dir()):
            reserve(copy, sum(int(version.split()[0]) for version in _listed(uri, wanted).values()))
            fetch_folder(uri, copy, keep=wanted)
            done.touch()


def _listed(uri: str, wanted: Callable[[str], bool]) -> dict[str, str]:
    return {name: version for name, version in list_folder(uri).items() if wanted(name)}
