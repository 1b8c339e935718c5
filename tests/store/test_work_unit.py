import contextlib
import json
from pathlib import Path

import pytest

from rglcd.store.work_unit import finish_unit, finished_unit, sweep_aside, unit_claimed, written_aside


@pytest.fixture
def record(tmp_path: Path) -> Path:
    (tmp_path / "0.bin").write_bytes(b"first")
    (tmp_path / "1.bin").write_bytes(b"second")
    finish_unit(tmp_path / "stats.json", ["0.bin", "1.bin"], samples=2)
    return tmp_path / "stats.json"


def test_a_finished_unit_is_what_was_recorded(record: Path) -> None:
    found = finished_unit(record)
    assert found is not None
    assert found["samples"] == 2


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_a_unit_with_a_damaged_file_is_not_finished(record: Path, damage: str) -> None:
    path = record.with_name("1.bin")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"secon" if damage == "cut" else b"sEcond")
    assert finished_unit(record) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"0.bin": 3}}', '{"files": {"0.bin": {"sha256": "x"}}}'])
def test_a_damaged_record_is_no_record(record: Path, text: str) -> None:
    record.write_text(text)
    assert finished_unit(record) is None


def test_no_record_no_unit(tmp_path: Path) -> None:
    assert finished_unit(tmp_path / "stats.json") is None


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "0.bin"
    with contextlib.suppress(KeyboardInterrupt), written_aside(path) as aside:
        aside.write_bytes(b"hal")
        raise KeyboardInterrupt
    (left,) = tmp_path.iterdir()
    assert (left.name[:7], left.suffix, left.read_bytes()) == (".0.bin.", ".aside", b"hal")
    sweep_aside(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with written_aside(path) as aside:
        aside.write_bytes(b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.bin"]


def test_sweeping_leaves_what_has_its_name(record: Path) -> None:
    before = sorted(record.parent.iterdir())
    (record.parent / ".1.bin.aside").touch()
    (record.parent / ".stats.json.123.aside").write_text(json.dumps({}))
    sweep_aside(record.parent)
    assert sorted(record.parent.iterdir()) == before


def test_what_a_living_worker_writes_is_not_swept_away(tmp_path: Path) -> None:
    with written_aside(tmp_path / "0.bin") as mine, written_aside(tmp_path / "0.bin") as yours:
        mine.write_bytes(b"whole")
        yours.write_bytes(b"whole")
        sweep_aside(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.bin"]


def test_a_unit_is_one_worker_s_at_a_time(tmp_path: Path) -> None:
    with unit_claimed(tmp_path / "0", wait=False) as mine, unit_claimed(tmp_path / "0", wait=False) as yours:
        sweep_aside(tmp_path)
        assert (mine, yours) == (True, False)
    with unit_claimed(tmp_path / "0", wait=False) as yours:
        assert yours
