"""Where artifacts lie: a folder of this machine, or an object store with the manifest alone on this machine.

A location may name one result by its key: ``FOLDER@KEY``, ``s3://bucket/prefix/NAME/KEY``. That is what runs hand on among their
stages, so that another run, which puts a result of its own in force meanwhile, is never met.

What is read from a store is copied: a local copy is a folder for one manifest, in which a file appears when it is first wanted
(:mod:`rglcd.store.local_copies`). Whoever reads a copy pins it, or it may be removed (:mod:`rglcd.store.local_cache`).
"""

import hashlib
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from uuid import uuid4

from rglcd.errors import InputError
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.environment import cache_folder, store_in_force
from rglcd.store.files import is_remote
from rglcd.store.local_cache import pinned
from rglcd.store.local_copies import fetch_files
from rglcd.store.manifest import MANIFEST, Manifest, manifest_text, read_manifest, write_manifest
from rglcd.store.places import Places

_KEY: Final = re.compile(r"[0-9a-f]{64}")


class Authority(StrEnum):
    """Who says what an artifact is now, where both a folder and a store could: whichever the artifact was named by."""

    FOLDER = "folder"
    STORE = "store"


@dataclass(frozen=True)
class ArtifactLocation:
    """Where one artifact lies. ``folder`` holds its manifest, and its files too unless ``uri`` names a store's folder for them.

    ``key`` is that of the result that is meant; None for the one in force.
    """

    folder: Path
    uri: str | None
    authority: Authority = Authority.FOLDER
    key: str | None = None

    @classmethod
    def of(cls, artifact: str, given: Path | str) -> "ArtifactLocation":
        """The location that ``given`` names: a URL, or a folder, whose bytes go to the store that the environment names if any."""
        place, key = _split(str(given))
        if is_remote(place):
            folder = cache_folder(beside=Path("artifacts") / artifact) / f"{artifact}-at-{_short_digest(place)}"
            return cls(folder, place, Authority.STORE, key)
        store = store_in_force()
        return cls(Path(place), None if store is None else f"{store.rstrip('/')}/{artifact}", key=key)

    @property
    def places(self) -> Places:
        """Where the results of this artifact lie in the folder."""
        return Places(self.folder)

    def read(self, *, made_by: str) -> tuple[Path, Manifest]:
        """The result that is meant: the folder in which its files are to be read, and its manifest, the local one before the store's.

        Raises :class:`InputError` without either.
        """
        if self.authority is Authority.FOLDER:
            if self.key is not None:
                found = next(self.places.results(self.key), None)
            else:
                found = (self.folder, read_manifest(self.folder, made_by=made_by)) if (self.folder / MANIFEST).is_file() else None
            if found is not None:
                return self.readable(found[1], at=found[0]), found[1]
        if self.uri is not None:
            store = ArtifactStore(self.uri)
            there = store.current() if self.key is None else store.made(self.key)
            if there is not None:
                return self.readable(there), there
        if self.key is not None:
            raise InputError(f"{self.uri or self.folder} has no result {self.key[:12]} any more; make it with: rglcd run {made_by}")
        if self.authority is Authority.STORE:
            raise InputError(f"{self.uri} holds nothing that was published; make it with: rglcd run {made_by}")
        return self.folder, read_manifest(self.folder, made_by=made_by)

    def readable(self, manifest: Manifest, *, at: Path | None = None) -> Path:
        """The folder in which the files of ``manifest`` are to be read: ``at`` (default: the artifact's), or that of a local copy."""
        if manifest.store is None:
            return at or self.folder
        return cache_folder(beside=self.folder) / f"{manifest.artifact}-{_short_digest(manifest_text(manifest))}"

    def mirror(self, manifest: Manifest, *, kept: Collection[str]) -> None:
        """Put ``manifest``, which stands in the store, into the folder, with the files that ``kept`` matches, in place of what is there."""
        staging = self.places.work(manifest.key).with_name(f"{self.folder.name}-{manifest.key[:12]}.{uuid4().hex[:8]}")
        staging.mkdir(parents=True)
        names = manifest.matching(kept)
        with pinned(copy := self.readable(manifest)):
            fetch_files(copy, manifest, wanted=lambda name: name in names)
            for name in names:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(copy / name, staging / name)
        write_manifest(staging, manifest)
        self.places.put_in_force(staging)


def at_key(given: Path | str, key: str) -> Path | str:
    """The location of the result called ``key`` of the artifact at ``given``, which names none."""
    return f"{given.rstrip('/')}/{key}" if isinstance(given, str) and is_remote(given) else Path(f"{given}@{key}")


def _split(given: str) -> tuple[str, str | None]:
    """A location without the key that it ends in, and the key, if it does."""
    place, _, key = given.rstrip("/").rpartition("/" if is_remote(given) else "@")
    return (place, key) if _KEY.fullmatch(key) and place else (given.rstrip("/") if is_remote(given) else given, None)


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
