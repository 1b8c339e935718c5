"""Staging: a file or folder gets its name when it is whole and on disk; what a killed process left is removed, work in progress is not."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rglcd.store.staging import publish_folder, remove_replaced, remove_stale_staging, staging_file, write_text
from tests.publishing import watch_folder_renames


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
