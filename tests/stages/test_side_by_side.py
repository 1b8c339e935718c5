"""Work in processes of one thread each: what they report, how they end, and that arms trained so are the same arms."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from rglcd import progress
from rglcd.errors import InputError, TryAgain
from rglcd.evaluation.observation import Batches
from rglcd.stages import distill
from rglcd.stages.side_by_side import run_side_by_side
from rglcd.stages.table import inputs_of, stage_named
from rglcd.store.manifest import read_manifest
from tests.stages.evaluated_line import config
from tests.stages.named_work import work
from tests.tiny_line import run


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def heard(folder: Path, names: list[str], *, at_once: int = 2) -> list[str]:
    events: list[progress.Event] = []
    with progress.reporting_to(events.append):
        run_side_by_side(partial(work, folder), names, at_once=at_once)
    return sorted(event.task for event in events)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_every_name_is_worked_on_by_a_process_of_one_thread_and_heard_of(tmp_path: Path, two_threads: object) -> None:
    assert heard(tmp_path, ["one", "two", "three"]) == ["one", "three", "two"]
    said = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert {threads for threads, _ in said.values()} == {"1"}
    assert len({pid for _, pid in said.values()} | {str(os.getpid())}) == 4
    assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("bad", InputError, "^bad.txt holds nothing: give it a line$"),
        ("unexpected", RuntimeError, "ZeroDivisionError in the process of unexpected:\n(?s:.)*by nothing"),
        ("killed", TryAgain, "^killed: its process ended by signal 9; run the same command"),
    ],
)
def test_an_error_ends_the_others_and_is_raised(tmp_path: Path, name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        heard(tmp_path, ["endless", name, "never"])
    assert not (tmp_path / "never").exists()
    if (said := tmp_path / "endless").is_file() and said.read_text():  # else it was ended before it began
        assert not is_alive(int(said.read_text().split()[1]))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_starter_ends_what_it_started(tmp_path: Path, how: signal.Signals) -> None:
    program = f"""
from functools import partial
from pathlib import Path
from rglcd.stages.side_by_side import run_side_by_side
from tests.stages.named_work import work
if __name__ == "__main__":
    run_side_by_side(partial(work, Path({str(tmp_path)!r})), ["endless"], at_once=2)
"""
    starter = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
    while not (path := tmp_path / "endless").is_file() or not path.read_text():
        assert starter.poll() is None
        time.sleep(0.05)
    starter.send_signal(how)
    _, said = starter.communicate(timeout=60)
    assert starter.returncode == (-9 if how is signal.SIGKILL else 1)
    assert how is signal.SIGKILL or "TryAgain" in said
    pid, deadline = int(path.read_text().split()[1]), time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_students_and_pictures_made_side_by_side_are_those_made_in_turn(
    own_evaluated: Path, two_threads: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the fixture was made by one thread. Nothing of the second one is trained or drawn in this process."""
    root = own_evaluated
    digests = {name: read_manifest(root / name, made_by=stage).digest for name, stage in (("student", "distill"), ("report", "evaluate"))}
    for name in digests:
        shutil.rmtree(root / name)
    monkeypatch.setattr(distill, "_train_arm", None)
    monkeypatch.setattr(Batches, "_observe", None)
    events: list[progress.Event] = []
    with progress.reporting_to(events.append):
        made = {"student": run(root, config(), "distill").manifest, "report": run(root, config(), "evaluate").manifest}
    assert {name: manifest.digest for name, manifest in made.items()} == digests
    assert {"distill lcm", "distill rg", "draw rg-2", "draw teacher-3"} <= {event.task for event in events}
    page = (root / "report" / "index.html").read_text()
    assert "CPU, 1 torch thread, 2 processes" in page


LONG = ("distillation.num_steps=40", "distillation.checkpoint_every=4")


def distilling(line: Path) -> list[str]:
    """``rglcd run distill``, as a user runs it."""
    configuration, stage = config(*LONG), stage_named("distill")
    sections = {section: configuration.section(section).model_dump(mode="json") for section in stage.sections}
    places = {name: line / name for name in inputs_of(stage, configuration)} | {"student": line / "student"}
    words = [sys.executable, "-m", "rglcd", "run", "distill", "--sections", json.dumps(sections)]
    return words + [word for name, place in places.items() for word in ("--artifact", f"{name}={place}")]


def saved(line: Path) -> list[str]:
    return [path.name for path in line.glob(".work/student-*/.*.checkpoints/step-*")]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_training_of_several_processes_that_is_ended_goes_on_to_the_same_student(
    own_evaluated: Path, tmp_path: Path, how: signal.Signals
) -> None:
    root = own_evaluated
    shutil.rmtree(root / "student")
    words = distilling(root)
    assert subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, timeout=600).returncode == 0
    expected = read_manifest(root / "student", made_by="distill").digest
    for left in (root / "student", root / ".work", root / ".results"):
        shutil.rmtree(left, ignore_errors=True)

    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    while len(saved(root)) < 2:
        assert process.poll() is None, "it was done before it was ended"
        time.sleep(0.01)
    process.send_signal(how)  # the command alone: its processes are left to notice
    _, said = process.communicate(timeout=120)
    assert process.returncode == (-9 if how is signal.SIGKILL else 75)
    assert how is signal.SIGKILL or "run the same command to go on" in said
    assert "Traceback" not in said
    again = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert again.returncode == 0, again.stderr[-2000:]
    assert read_manifest(root / "student", made_by="distill").digest == expected
    assert not list(root.glob(".work/student-*/"))
