import json
from pathlib import Path

import pytest

from rglcd.store.shard_tasks import files_of, finish_task, finished_task, record_elsewhere, take_recorded_elsewhere, task_lock
from rglcd.store.staging import remove_stale_staging


@pytest.fixture
def record(tmp_path: Path) -> Path:
    (tmp_path / "0.bin").write_bytes(b"first")
    (tmp_path / "1.bin").write_bytes(b"second")
    finish_task(tmp_path / "stats.json", ["0.bin", "1.bin"], samples=2)
    return tmp_path / "stats.json"


def test_a_finished_task_returns_its_record(record: Path) -> None:
    found = finished_task(record)
    assert found is not None
    assert found["samples"] == 2


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_a_task_with_a_damaged_file_is_not_finished(record: Path, damage: str) -> None:
    path = record.with_name("1.bin")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"secon" if damage == "cut" else b"sEcond")
    assert finished_task(record) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"0.bin": 3}}', '{"files": {"0.bin": {"sha256": "x"}}}'])
def test_a_task_with_a_damaged_record_is_not_finished(record: Path, text: str) -> None:
    record.write_text(text)
    assert finished_task(record) is None


def test_a_task_without_a_record_is_not_finished(tmp_path: Path) -> None:
    assert finished_task(tmp_path / "stats.json") is None


def test_a_task_is_locked_by_one_worker_at_a_time(tmp_path: Path) -> None:
    with task_lock(tmp_path / "0", wait=False) as mine, task_lock(tmp_path / "0", wait=False) as yours:
        remove_stale_staging(tmp_path)
        assert (mine, yours) == (True, False)
    for wait in (False, True):
        with task_lock(tmp_path / "0", wait=wait) as yours:
            assert yours
    assert list(tmp_path.iterdir()) == []


def test_a_task_recorded_elsewhere_counts_as_finished_without_its_files(record: Path) -> None:
    content = record.read_bytes()
    record_elsewhere(record, content)
    assert not (record.parent / "0.bin").exists()
    assert finished_task(record) == json.loads(content)
    assert take_recorded_elsewhere(record.parent) == files_of(json.loads(content))
    assert finished_task(record) is None
