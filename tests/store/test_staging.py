"""Staging: a file or folder gets its name when it is whole and on disk; what a killed process left is removed, work in progress is not."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rglcd.store.files import upload
from rglcd.store.manifest import FileEntry, sha256_of
from rglcd.store.object_store import create_object, read_object, write_object
from rglcd.store.staging import publish_folder, remove_replaced, remove_stale_staging, staging_file, write_text
from tests.publishing import watch_file_renames, watch_folder_renames


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "0.bin"
    with contextlib.suppress(KeyboardInterrupt), staging_file(path) as staging:
        staging.write_bytes(b"hal")
        raise KeyboardInterrupt
    (left,) = tmp_path.iterdir()
    assert (left.name[:7], left.suffix, left.read_bytes()) == (".0.bin.", ".staging", b"hal")
    remove_stale_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with staging_file(path) as staging:
        staging.write_bytes(b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.bin"]


def test_published_files_are_not_removed_as_stale(tmp_path: Path) -> None:
    write_text(tmp_path / "1.bin", "1")
    (tmp_path / ".1.bin.staging").touch()
    (tmp_path / ".stats.json.123.staging").write_text("{}")
    remove_stale_staging(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1.bin"]


def test_staging_files_of_living_writers_are_kept_with_their_content(tmp_path: Path) -> None:
    with staging_file(tmp_path / "0.bin") as mine, staging_file(tmp_path / "0.bin") as yours:
        mine.write_bytes(b"mine")
        yours.write_bytes(b"yours")
        remove_stale_staging(tmp_path)
        assert (mine.read_bytes(), yours.read_bytes()) == (b"mine", b"yours")
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.bin"]


def test_a_staging_file_that_its_writer_replaces_by_another_file_is_kept(tmp_path: Path) -> None:
    """As safetensors does when it saves: the name then leads to a file that nobody has locked."""
    with staging_file(tmp_path / "a.safetensors") as staging:
        save_file({"weight": torch.zeros(3)}, str(staging))
        remove_stale_staging(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"], "neither staging file nor lock is left"


def test_what_a_killed_writer_left_is_removed_with_its_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from rglcd.store.staging import staging_file\n"
        "with staging_file(Path(sys.argv[1])) as staging:\n"
        "    staging.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.tar")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    remove_stale_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_on_disk_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = tmp_path / ".student.staging"
    (staging / "unet").mkdir(parents=True)
    (staging / "unet" / "weights").write_bytes(b"weights")
    (staging / "config.json").write_text("{}")
    renamed = watch_folder_renames(monkeypatch)
    publish_folder(staging, tmp_path / "student")
    assert renamed == {"student": []}
    assert (tmp_path / "student" / "unet" / "weights").read_bytes() == b"weights"


def test_a_published_folder_replaces_the_earlier_one_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        staging = tmp_path / ".report.staging"
        staging.mkdir()
        (staging / content).touch()
        publish_folder(staging, tmp_path / "report")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["report", "report/second"]


def test_what_a_killed_publication_moved_away_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".report.replaced" / "metrics").mkdir(parents=True)
    remove_replaced(tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_a_files_new_name_is_on_disk_when_the_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "folder").mkdir()
    happened = watch_file_renames(monkeypatch)
    write_text(folder / "state.json", "{}")
    content, renamed, names = happened
    assert (content[:18], renamed, names) == ("flush .state.json.", "rename to state.json", "flush folder")


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_an_uploaded_file_is_whole_under_its_name_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """A store that is a folder is a disk too; of any other its own API says when an object is there."""
    (tmp_path / "a.bin").write_bytes(b"content")
    uri = f"file://{tmp_path}/store/a.bin" if scheme == "file" else "memory://store/a.bin"
    happened = watch_file_renames(monkeypatch)
    upload(tmp_path / "a.bin", uri, FileEntry(sha256_of(tmp_path / "a.bin"), 7))
    assert read_object(uri) == b"content"
    write_object(uri, b"other")
    assert read_object(uri) == b"other"
    create_object(uri.replace("a.bin", "b.bin"), b"new", is_whole=lambda content: content == b"new")
    renamed = [event for event in happened if event.startswith("rename")]
    assert renamed == (["rename to a.bin"] * 2 if scheme == "file" else [])
    assert happened.count("flush store") == (3 if scheme == "file" else 0)


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=lambda mask: f"umask {mask:03o}")
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_published_file_may_be_read_by_whom_the_umask_says(tmp_path: Path, mask: int) -> None:
    """Not by its owner alone, as safetensors has it: a colleague, a web server and a pod of another user read students too."""
    staging = tmp_path / ".student.staging"
    (staging / "unet").mkdir(parents=True)
    save_file({"weight": torch.zeros(3)}, str(staging / "unet" / "model.safetensors"))
    (staging / "config.json").write_text("{}")
    publish_folder(staging, tmp_path / "student")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(["model.safetensors", "config.json"], 0o666 & ~mask)
    assert stat.S_IMODE((tmp_path / "student" / "unet").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush_folders_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As SMB answers, which clouds mount where a claim is to be shared: each write ended in an unexpected error."""
    fsync = os.fsync

    def refuses_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses_folders)
    (tmp_path / ".report.staging").mkdir()
    write_text(tmp_path / ".report.staging" / "index.html", "page")
    publish_folder(tmp_path / ".report.staging", tmp_path / "report")
    assert (tmp_path / "report" / "index.html").read_text() == "page"


def test_a_file_that_cannot_be_flushed_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(OSError, match="Invalid argument"):
        write_text(tmp_path / "a.json", "{}")
    assert not (tmp_path / "a.json").exists()
