"""Where artifacts lie: a folder of this machine, or an object store with the manifest alone on this machine.

What is read from a store is copied: a local copy is a folder for one manifest, in which a file appears when it is first wanted
(:mod:`rglcd.store.local_copies`). Whoever reads a copy pins it, or it may be removed (:mod:`rglcd.store.local_cache`).
"""

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rglcd.errors import InputError
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.environment import cache_folder, store_in_force
from rglcd.store.files import is_remote
from rglcd.store.local_cache import pinned
from rglcd.store.local_copies import fetch_files
from rglcd.store.manifest import MANIFEST, Manifest, manifest_text, read_manifest, write_manifest
from rglcd.store.staging import publish_folder


class Authority(StrEnum):
    """Who says what an artifact is now, where both a folder and a store could: whichever the artifact was named by."""

    FOLDER = "folder"
    STORE = "store"


@dataclass(frozen=True)
class ArtifactLocation:
    """Where one artifact lies. ``folder`` holds its manifest, and its files too unless ``uri`` names a store's folder for them."""

    folder: Path
    uri: str | None
    authority: Authority = Authority.FOLDER

    @classmethod
    def of(cls, artifact: str, given: Path | str) -> "ArtifactLocation":
        """The location that ``given`` names: a URL, or a folder, whose bytes go to the store that the environment names if any."""
        if is_remote(given):
            uri = str(given).rstrip("/")
            folder = cache_folder(beside=Path("artifacts") / artifact) / f"{artifact}-at-{_short_digest(uri)}"
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
        """The folder in which the files of ``manifest`` are to be read: the artifact's, or that of a local copy."""
        if manifest.store is None:
            return self.folder
        return cache_folder(beside=self.folder) / f"{manifest.artifact}-{_short_digest(manifest_text(manifest))}"

    def mirror(self, manifest: Manifest, *, kept: Collection[str]) -> None:
        """Put ``manifest``, which stands in the store, into the folder, with the files that ``kept`` matches, in place of what is there."""
        staging = self.folder.with_name(f".{self.folder.name}.mirror")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        names = manifest.matching(kept)
        with pinned(copy := self.readable(manifest)):
            fetch_files(copy, manifest, wanted=lambda name: name in names)
            for name in names:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(copy / name, staging / name)
        write_manifest(staging, manifest)
        publish_folder(staging, self.folder)


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
