"""A folder published as the stage would, whatever is in it."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from rglcd.config import Section
from rglcd.store.manifest import MANIFEST, Manifest, read_manifest, results_digest, scan, write_manifest


def publish(folder: Path, *, stage: str, sections: Mapping[str, Section] | None = None) -> Path:
    """Write the manifest of ``folder``, the artifact of that name, for the files that lie in it, made with ``sections``.

    Left out, these are the ones that an earlier manifest says.
    """
    files = scan(folder)
    plain = {name: section.model_dump(mode="json") for name, section in (sections or {}).items()}
    if sections is None and (folder / MANIFEST).is_file():
        plain = read_manifest(folder, made_by=stage).sections
    write_manifest(folder, Manifest(folder.name, stage, 1, "key", results_digest(files), {}, plain, files))
    return folder


def watch_folder_renames(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """From now on, for each name that a folder is renamed to: the files and folders in it that were not flushed to disk before.

    What a file's inode had when it was flushed last is compared with what it has at the rename, so a later write counts.
    """
    flushed: dict[int, tuple[int, int]] = {}
    renamed: dict[str, list[str]] = {}
    fsync, rename = os.fsync, os.rename

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        flushed[status.st_ino] = (status.st_size, status.st_mtime_ns)

    def noting_rename(source: str | Path, target: str | Path) -> None:
        if Path(source).is_dir():
            paths = [Path(source), *Path(source).rglob("*")]
            states = {path: path.stat() for path in paths}
            renamed[Path(target).name] = sorted(
                path.name for path, status in states.items() if flushed.get(status.st_ino) != (status.st_size, status.st_mtime_ns)
            )
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    return renamed


def watch_file_renames(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on: what happens to files and folders, in order: ``flush NAME`` and ``rename to NAME``."""
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        happened.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def noting_replace(source: str | Path, target: str | Path) -> None:
        replace(source, target)
        happened.append(f"rename to {Path(target).name}")

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    return happened
