"""Of the ranks of one node one hashes a file; a flipped byte is found all the same, whenever it was flipped."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rglcd.latents import verification
from rglcd.latents.verification import verify_once_a_node
from rglcd.store.manifest import FileEntry, sha256_of

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to verify, on a node of two ranks whose folder for temporary files is this test's."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(verification.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    path = tmp_path / "00000.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def entry(file: Path) -> FileEntry:
    return FileEntry(sha256_of(file), len(CONTENT))


def on_ranks(count: int, work: Callable[[], object], path: Path, *, at_once: bool = False) -> tuple[list[object], int]:
    """What ``count`` processes of one parent return or raise, and how many bytes of ``path`` they read through Python in all."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def rank() -> None:
        opened = []

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and str(arguments[0]) == str(path) and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                opened.append(len(CONTENT))

        sys.addaudithook(note)
        try:
            answer = work()
        except Exception as error:
            answer = repr(error)
        answers.put((answer, sum(opened)))

    processes = [context.Process(target=rank) for _ in range(count)]
    for process in processes:
        process.start()
        if not at_once:
            process.join()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return [answer for answer, _ in found], sum(read for _, read in found)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_ranks_of_a_node_hash_a_file_once(file: Path, entry: FileEntry, at_once: bool) -> None:
    assert on_ranks(8, lambda: verify_once_a_node(file, entry), file, at_once=at_once) == ([None] * 8, len(CONTENT))


def test_a_process_alone_hashes_whatever_others_have_found(file: Path, entry: FileEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    on_ranks(1, lambda: verify_once_a_node(file, entry), file)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert on_ranks(2, lambda: verify_once_a_node(file, entry), file) == ([None] * 2, 2 * len(CONTENT))


def test_ranks_of_another_run_hash_again(file: Path, entry: FileEntry) -> None:
    on_ranks(1, lambda: verify_once_a_node(file, entry), file)

    def a_run() -> object:
        return on_ranks(2, lambda: verify_once_a_node(file, entry), file)

    assert on_ranks(1, a_run, file)[0] == [([None] * 2, len(CONTENT))]


@pytest.mark.parametrize("place", [0, 5_000, len(CONTENT) - 1])
def test_a_byte_flipped_after_it_was_verified_is_found_by_every_rank(file: Path, entry: FileEntry, place: int) -> None:
    assert verify_once_a_node(file, entry) is None
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([CONTENT[place] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as copying tools do: the time of the inode's change remains
    answers, read = on_ranks(2, lambda: verify_once_a_node(file, entry), file)
    assert all("has sha256" in str(answer) for answer in answers)
    assert read == 2 * len(CONTENT), "what is damaged is not recorded"


def test_another_file_in_its_place_is_found(file: Path, entry: FileEntry) -> None:
    assert verify_once_a_node(file, entry) is None
    other = file.with_name("other")
    other.write_bytes(CONTENT[::-1])
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert "has sha256" in str(verify_once_a_node(file, entry))
    file.unlink()
    assert verify_once_a_node(file, entry) == "is missing"


def test_a_marker_that_a_kill_cut_counts_for_nothing(file: Path, entry: FileEntry, tmp_path: Path) -> None:
    assert verify_once_a_node(file, entry) is None
    (marker,) = (tmp_path / "temporary").rglob("*.json")
    marker.write_bytes(marker.read_bytes()[:40])
    assert on_ranks(2, lambda: verify_once_a_node(file, entry), file) == ([None] * 2, len(CONTENT))


def test_markers_that_another_user_may_have_written_are_not_believed(file: Path, entry: FileEntry, tmp_path: Path) -> None:
    assert verify_once_a_node(file, entry) is None
    (folder,) = (tmp_path / "temporary").iterdir()
    folder.chmod(0o777)
    assert on_ranks(2, lambda: verify_once_a_node(file, entry), file) == ([None] * 2, 2 * len(CONTENT))
    aside = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(aside)
    assert on_ranks(2, lambda: verify_once_a_node(file, entry), file) == ([None] * 2, 2 * len(CONTENT))


def test_a_missing_file_is_fetched_once(file: Path, entry: FileEntry) -> None:
    file.unlink()

    def fetch() -> None:
        assert not file.exists(), "fetched twice"
        file.write_bytes(CONTENT)

    answers, read = on_ranks(4, lambda: verify_once_a_node(file, entry, fetch=fetch), file, at_once=True)
    assert answers == [None] * 4
    assert read == len(CONTENT)
