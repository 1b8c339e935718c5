"""What a training pod says: JSON lines, a termination message, the first failing rank's exit code."""

import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from rglcd.launch.failure import read_failure
from rglcd.launch.pod import JsonLog
from rglcd.progress import Event

RANK = """
import os, signal, sys, time
from rglcd.errors import TryAgain, TrainingDiverged
from rglcd.launch.boundary import process_boundary
from rglcd.progress import json_lines_sink, Event
from pathlib import Path
rank = os.environ["RANK"]
print(f"hello from {rank}", flush=True)
there = Path(__file__).with_name("rank-0-is-there")
if rank == "0":
    there.touch()
while not there.exists():
    time.sleep(0.05)
with process_boundary():
    match sys.argv[1]:
        case "diverge":
            if rank == "1":
                print("the last words", file=sys.stderr, flush=True)
                raise TrainingDiverged("step 12: the loss is nan")
            time.sleep(60)
        case "crash":
            if rank == "1":
                print("Traceback: no", file=sys.stderr, flush=True)
                os._exit(9)
            time.sleep(60)
        case "bars":
            if rank == "1":
                for _ in range(30):
                    print("caching " + "\u2588" * 60, file=sys.stderr, flush=True)
                raise TrainingDiverged("step 12: the loss is nan; " + "\u00e9" * 3000)
            time.sleep(60)
        case "bug":
            if rank == "0":
                {}["missing"]
            time.sleep(60)
        case "freeze":
            if rank == "1":
                time.sleep(1)
                os._exit(9)
            print("frozen", os.getpid(), flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        case "save":
            def stop(*_):
                time.sleep(1)
                raise TryAgain("saved")
            signal.signal(signal.SIGTERM, stop)
            if rank == "0":
                json_lines_sink(Path(os.environ["RGLCD_PROGRESS"]))(Event("train", 1, 4, "steps", {"loss": 0.5}))
            print("ready", flush=True)
            time.sleep(60)
"""


def start(tmp_path: Path, what: str, *options: str) -> subprocess.Popen[str]:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    torchrun = ("--standalone", "--nproc-per-node", "2", str(script), what)
    words = [
        sys.executable,
        "-m",
        "rglcd.launch.pod",
        "--run",
        "r1",
        "--error-file",
        str(tmp_path / "termination-log"),
        *options,
        "--",
        *torchrun,
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("what", "code", "message"), [("diverge", 3, "step 12: the loss is nan"), ("crash", 9, "rank 1 ended with exit code 9")]
)
def test_exit_code_and_last_lines_of_a_pod_are_those_of_the_first_failing_rank(tmp_path: Path, what: str, code: int, message: str) -> None:
    process = start(tmp_path, what)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code
    failure = read_failure((tmp_path / "termination-log").read_text())
    assert failure is not None
    assert (failure.message, failure.exit_code, failure.rank) == (message, code, 1)
    assert any(line in ("the last words", "Traceback: no") for line in failure.last_lines)
    lines = [json.loads(line) for line in out.splitlines()]
    assert all(line["run"] == "r1" for line in lines)
    said = {(line["rank"], line.get("message")) for line in lines}
    assert (0, "hello from 0") in said
    assert (1, "hello from 1") not in said


def test_a_termination_message_is_read_whatever_the_last_lines_were(tmp_path: Path) -> None:
    """The kubelet keeps the last 4096 bytes of it; without its head nobody can read it."""
    process = start(tmp_path, "bars")
    process.communicate(timeout=120)
    assert process.returncode == 3
    written = (tmp_path / "termination-log").read_bytes()
    assert len(written) <= 4096
    failure = read_failure(written.decode())
    assert failure is not None
    assert (failure.exit_code, failure.rank) == (3, 1)
    assert failure.message.startswith("step 12: the loss is nan; ")
    assert any("\u2588" * 20 in line for line in failure.last_lines)


def test_unexpected_error_of_a_rank_is_in_the_log_with_its_traceback(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_POD_NAME", "distill-0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start(tmp_path, "bug")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 70
    failure = read_failure((tmp_path / "termination-log").read_text())
    assert failure is not None
    assert (failure.exit_code, failure.rank) == (70, 0)
    assert failure.message.startswith("unexpected error, please report it: KeyError: 'missing'; its traceback is in /")
    assert "KeyError: 'missing'" in failure.last_lines
    said = [line.get("message") for line in map(json.loads, out.splitlines()) if line["rank"] == 0]
    assert "Traceback (most recent call last):" in said
    assert "KeyError: 'missing'" in said


def test_terminated_pod_lets_ranks_save_and_ends_with_75(tmp_path: Path) -> None:
    process = start(tmp_path, "save", "--metrics-address", "127.0.0.1", "--metrics-port", "19417")
    assert process.stdout is not None
    seen = {"ready": False, "progress": False}
    while not all(seen.values()):
        line = json.loads(process.stdout.readline())
        seen["ready"] |= line.get("message") == "ready"
        if "progress" in line:
            assert line["progress"] == {"task": "train", "done": 1, "total": 4, "unit": "steps", "values": {"loss": 0.5}}
            seen["progress"] = True
    with urllib.request.urlopen("http://127.0.0.1:19417/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert 'rglcd_progress_done{task="train",unit="steps"} 1.0' in metrics
    assert 'rglcd_figure{name="loss",task="train"} 0.5' in metrics
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_terminated_pod_leaves_no_frozen_rank_behind(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "2")
    process = start(tmp_path, "freeze")
    assert process.stdout is not None
    said = ""
    while "closing signal" not in said:  # rank 1 has failed, and elastic waits for rank 0
        said += process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    (rank,) = re.findall(r"frozen (\d+)", said)
    assert not Path(f"/proc/{rank}").exists()


def test_log_lines_written_in_pieces_arrive_whole() -> None:
    out = io.StringIO()
    log = JsonLog(out, run="r")
    stream = log.stream()
    for piece in ("[rank0]:half", " a line\n[rank1]:kept ", "back\nplain\n", "[rank0]:10%\r[rank0]:20%\n"):
        stream.write(piece)
    log.progress(Event("t", 1, 2, "u", {}))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["rank"], line.get("message")) for line in lines] == [(0, "half a line"), (None, "plain"), (0, "[rank0]:20%"), (0, None)]
    assert log.last_lines(1) == ["kept back"]


def test_last_words_of_the_rank_that_failed_are_kept_in_the_folder_of_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "student.failures" / "rglcd-distill-r-1"
    monkeypatch.setenv("RGLCD_FAILURES_FOLDER", str(folder))
    start(tmp_path, "diverge").communicate(timeout=120)
    kept = json.loads((folder / "rank-1.json").read_text())
    assert (kept["exit_code"], kept["message"]) == (3, "step 12: the loss is nan")
    assert "the last words" in kept["last_lines"]


def test_an_attempt_that_ends_well_leaves_no_folder_of_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "student.failures" / "rglcd-distill-r-1"
    monkeypatch.setenv("RGLCD_FAILURES_FOLDER", str(folder))
    ended = start(tmp_path, "nothing")
    ended.communicate(timeout=120)
    assert ended.returncode == 0
    assert not folder.parent.exists()
