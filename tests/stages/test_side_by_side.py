"""Work in processes of one thread each: what they report, how they end, and that arms trained so are the same arms."""

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
from rglcd.stages import distill
from rglcd.stages.side_by_side import run_side_by_side
from tests.tiny_line import run, tiny_config, up_to_latents


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def work(folder: Path, name: str) -> None:
    """Says how it is done by its name: well, badly, killed, or not before it is stopped."""
    (folder / name).write_text(f"{torch.get_num_threads()} {os.getpid()}")
    progress.report(name, done=1, total=1, unit="things")
    if name == "bad":
        raise InputError("bad.txt holds nothing: give it a line")
    if name == "unexpected":
        raise ZeroDivisionError("by nothing")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "endless":
        time.sleep(600)


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
    assert not is_alive(int((tmp_path / "endless").read_text().split()[1]))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_starter_ends_what_it_started(tmp_path: Path, how: signal.Signals) -> None:
    program = f"""
from functools import partial
from pathlib import Path
from rglcd.stages.side_by_side import run_side_by_side
from tests.stages.test_side_by_side import work
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


def test_arms_trained_side_by_side_are_those_trained_in_turn(tmp_path: Path, two_threads: object, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    up_to_latents(tmp_path, config)
    run(tmp_path, config, "pretrain")

    torch.set_num_threads(1)
    in_turn = run(tmp_path, config, "distill").manifest
    shutil.rmtree(tmp_path / "student")

    torch.set_num_threads(2)
    monkeypatch.setattr(distill, "_train_arm", None)  # here, not in the processes: nothing is trained in this one
    events: list[progress.Event] = []
    with progress.reporting_to(events.append):
        side_by_side = run(tmp_path, config, "distill").manifest
    assert side_by_side.digest == in_turn.digest
    assert {"distill lcm", "distill rg"} <= {event.task for event in events}
