"""Where results lie: which is found, what is kept of another, and what a reader has of one that moves."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rglcd.store.manifest import Manifest, results_digest, scan, write_manifest
from rglcd.store.places import Places, folder_of_links, link_file

KEYS = {name: name * 64 for name in "abc"}


def made(folder: Path, key: str, content: str = "content") -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_text(content)
    files = scan(folder)
    write_manifest(folder, Manifest("student", "distill", 1, KEYS[key], results_digest(files), {}, {}, files))
    return folder


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "student")


def test_each_result_is_found_wherever_it_lies(places: Places) -> None:
    for key in "abcab":
        places.put_in_force(made(places.work(KEYS[key]), key) if not list(places.results(KEYS[key])) else places.kept(KEYS[key]))
    assert [folder for folder, _ in places.results(KEYS["b"])] == [places.in_force]
    assert {path.name for path in places.kept(KEYS["a"]).parent.iterdir()} == {f"student-{key * 12}" for key in "ac"}


def test_a_result_that_is_made_again_is_kept_beside_the_cut_one(places: Places) -> None:
    places.put_in_force(made(places.work(KEYS["a"]), "a"))
    (places.in_force / "weights").write_text("cut")
    places.put_in_force(made(places.work(KEYS["a"]), "a"))
    assert (places.in_force / "weights").read_text() == "content"
    places.put_in_force(made(places.work(KEYS["b"]), "b"))
    assert sorted((folder / "weights").read_text() for folder, _ in places.results(KEYS["a"])) == ["content", "cut"]


def test_what_nobody_can_read_is_kept_too(places: Places) -> None:
    for _ in range(2):
        places.in_force.mkdir()
        (places.in_force / "by-hand").touch()
        places.put_in_force(made(places.work(KEYS["a"]), "a"))
        shutil.rmtree(places.in_force)
    assert len(list(places.kept(KEYS["a"]).parent.glob("student-unreadable-*/by-hand"))) == 2


def test_putting_in_force_what_another_process_has_moved_does_nothing(places: Places) -> None:
    places.put_in_force(made(places.work(KEYS["a"]), "a"))
    places.put_in_force(places.kept(KEYS["b"]))
    assert [folder for folder, _ in places.results(KEYS["a"])] == [places.in_force]


def test_a_reader_keeps_its_files_when_the_result_moves_or_goes(places: Places) -> None:
    places.put_in_force(made(places.work(KEYS["a"]), "a"))
    with folder_of_links(beside=places.in_force) as folder:
        link_file(places.in_force / "weights", folder / "deep" / "weights")
        places.put_in_force(made(places.work(KEYS["b"]), "b", content="another"))
        shutil.rmtree(places.kept(KEYS["a"]))
        assert (folder / "deep" / "weights").read_text() == "content"
    assert not folder.exists()


@pytest.mark.parametrize("has_work", [False, True])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_links_beside_what_may_only_be_read_lie_elsewhere(
    places: Places, monkeypatch: pytest.MonkeyPatch, has_work: bool, number: int
) -> None:
    """As the kernel refuses it to another user, or on a volume that is mounted read-only."""
    made(places.in_force, "a")
    work = places.in_force.parent / ".work"
    if has_work:
        work.mkdir()
    refuses = work.parent if not has_work else work

    def refusing(call: Any) -> Any:
        def refuse(path: str | Path, *arguments: Any, **named: Any) -> Any:
            if Path(path).parent == refuses:
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *arguments, **named)

        return refuse

    for name in ("open", "mkdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with folder_of_links(beside=places.in_force) as folder, places.at_rest():
        assert places.in_force.parent not in folder.parents


def test_work_in_progress_has_a_lock_for_as_long_as_anybody_works(places: Places) -> None:
    lock = places.work(KEYS["a"]).with_name(f"{places.work(KEYS['a']).name}.lock")
    with places.working(KEYS["a"]):
        with places.working(KEYS["a"]):
            pass
        assert lock.exists()
    assert not lock.exists()


def test_a_manifest_of_another_result_is_no_result_of_this_key(places: Places) -> None:
    folder = made(places.in_force, "a")
    assert list(places.results(KEYS["b"])) == []
    write_manifest(folder, replace(next(iter(places.results(KEYS["a"])))[1], key=KEYS["b"]))
    assert list(places.results(KEYS["a"])) == []
