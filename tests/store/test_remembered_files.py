"""Files that did not change are not read again, and those that did are, by whatever way they changed."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rglcd.store import remembered_files
from rglcd.store.manifest import digest_of, folder_digest
from rglcd.store.remembered_files import entries_of, forget

HOUR = 3600


def folder_digest_of(folder: Path, *, memory: Path) -> str:
    """What :func:`rglcd.store.manifest.folder_digest` says of ``folder``, from what is remembered."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return digest_of({name: entry.sha256 for name, entry in entries_of(files, of=folder, memory=memory).items()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models" / "unet").mkdir(parents=True)
    for name in ("unet/model.safetensors", "config.json"):
        (tmp_path / "models" / name).write_bytes(b"1234")
    return tmp_path / "models"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    sha256_of = remembered_files.sha256_of

    def noting(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(remembered_files, "sha256_of", noting)
    return names


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``later(seconds)``: the clock is ahead by so much."""
    time_ns = time.time_ns

    def move(seconds: float) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: time_ns() + int(seconds * 1e9))

    return move


def test_what_did_not_change_is_read_once(folder: Path, tmp_path: Path, read: list[str], later: Callable[[float], None]) -> None:
    later(HOUR)
    memory = tmp_path / ".seen"
    assert folder_digest_of(folder, memory=memory) == folder_digest(folder)
    assert sorted(read) == ["config.json", "model.safetensors"]
    for _ in range(2):
        assert folder_digest_of(folder, memory=memory) == folder_digest(folder)
    assert len(read) == 2
    forget(memory)
    folder_digest_of(folder, memory=memory)
    assert len(read) == 4


def test_what_was_just_written_is_read_again(folder: Path, tmp_path: Path, read: list[str], later: Callable[[float], None]) -> None:
    """Git's racy entries: within one tick of the disk's clock a second change of the same size shows nowhere."""
    memory = tmp_path / ".seen"
    for _ in range(2):
        folder_digest_of(folder, memory=memory)
    assert len(read) == 4
    later(HOUR)
    folder_digest_of(folder, memory=memory)
    read.clear()
    folder_digest_of(folder, memory=memory)
    assert read == []


def _same_time(path: Path, act: Callable[[], object]) -> None:
    before = path.stat()
    act()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _renamed_over(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"4321")
    shutil.copystat(path, new)
    new.replace(path)


CHANGES = {
    "written in place with its old time": lambda path: _same_time(path, lambda: path.write_bytes(b"4321")),
    "another file of the same size and time renamed over it": _renamed_over,
    "longer": lambda path: path.write_bytes(b"12345"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changed_is_read(folder: Path, tmp_path: Path, read: list[str], later: Callable[[float], None], change: str) -> None:
    later(HOUR)
    memory = tmp_path / ".seen"
    first = folder_digest_of(folder, memory=memory)
    read.clear()
    CHANGES[change](folder / "unet" / "model.safetensors")
    assert folder_digest_of(folder, memory=memory) == folder_digest(folder) != first
    assert read == ["model.safetensors"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {"config.json": [1, 2]}}', '{"files": []}'])
def test_a_memory_that_was_cut_only_costs_time(folder: Path, tmp_path: Path, content: str, later: Callable[[float], None]) -> None:
    later(HOUR)
    memory = tmp_path / ".seen"
    folder_digest_of(folder, memory=memory)
    (place,) = memory.iterdir()
    place.write_text(content)
    assert folder_digest_of(folder, memory=memory) == folder_digest(folder)


def test_added_removed_and_renamed_files_change_the_digest(folder: Path, tmp_path: Path, later: Callable[[float], None]) -> None:
    later(HOUR)
    memory = tmp_path / ".seen"
    digests = [folder_digest_of(folder, memory=memory)]
    (folder / "more.json").write_bytes(b"1234")
    digests.append(folder_digest_of(folder, memory=memory))
    (folder / "more.json").rename(folder / "most.json")
    digests.append(folder_digest_of(folder, memory=memory))
    (folder / "most.json").unlink()
    assert len(set(digests)) == 3
    assert folder_digest_of(folder, memory=memory) == digests[0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_memory_only_costs_time(
    folder: Path, tmp_path: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full one ended the stage, before it had begun, in an unexpected error."""
    later(HOUR)

    def refused(path: Path, content: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(remembered_files, "write_json", refused)
    assert folder_digest_of(folder, memory=tmp_path / ".seen") == folder_digest(folder)
