"""An artifact opened for looking, outside any stage: the files that are wanted of it, each as its manifest says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rglcd.errors import InputError
from rglcd.store.artifacts import ArtifactLocation
from rglcd.store.local_cache import pinned
from rglcd.store.local_copies import fetch_files
from rglcd.store.manifest import Manifest, altered_files


@contextmanager
def opened_artifact(artifact: str, folder: Path, *, made_by: str, wanted: Callable[[str], bool]) -> Iterator[tuple[Path, Manifest]]:
    """Where the files of ``artifact``, whose manifest is in ``folder``, are read while this lasts, and the manifest.

    What lies in a store is copied here. Raises :class:`InputError` without a manifest, and for a file that is not what it says.
    """
    found, manifest = ArtifactLocation.of(artifact, folder).read(made_by=made_by)
    if manifest.store is not None:
        with pinned(found):
            fetch_files(found, manifest, wanted=wanted)
            yield found, manifest
        return
    altered = altered_files(found, manifest, names=filter(wanted, manifest.files))
    if altered:
        raise InputError(f"{found}: {altered[0]}; make it again: rglcd run {made_by}")
    yield found, manifest
