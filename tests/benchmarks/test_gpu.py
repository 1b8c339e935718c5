"""`make gpu`: installs only what is missing and never torch, keeps each part to its limit, and runs on a CPU too."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu import ROOT, Part, Record, is_wanted, main, minimum_versions, parts, run_part
from benchmarks.step_bench import Bench, Setting, toy_sizes
from benchmarks.throughput import measured

MINIMUM = minimum_versions((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_minimum_versions_are_those_of_pyproject() -> None:
    assert MINIMUM["diffusers"] == "0.42"
    assert MINIMUM["huggingface-hub"] == "2"
    assert MINIMUM["pydantic"] == "2.12"


@pytest.mark.parametrize(
    ("wheel", "here", "wanted"),
    [
        ("diffusers-0.42.1-py3-none-any.whl", None, True),
        ("diffusers-0.42.1-py3-none-any.whl", "0.41.9", True),
        ("diffusers-0.42.1-py3-none-any.whl", "0.42", False),
        ("transformers-5.23.0-py3-none-any.whl", "5.17.0", True),
        ("huggingface_hub-2.4.0-py3-none-any.whl", "1.33.0", True),
        ("braceexpand-0.1.7-py2.py3-none-any.whl", "0.1.6", True),
        ("braceexpand-0.1.7-py2.py3-none-any.whl", "0.1.7", False),
        ("torch-2.13.0-cp312-cp312-linux_x86_64.whl", None, False),
        ("torchvision-0.29.1-cp312-cp312-linux_x86_64.whl", None, False),
        ("nvidia_cudnn_cu13-9.0-py3-none-any.whl", None, False),
        ("triton-3.6.0-cp312-cp312-linux_x86_64.whl", "3.5.0", False),
    ],
)
def test_only_missing_or_too_old_packages_are_installed_and_never_torch(wheel: str, here: str | None, wanted: bool) -> None:
    assert is_wanted(Path(wheel), lambda name: here, MINIMUM) is wanted


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_part_that_overruns_its_limit_is_killed_with_its_children_and_its_lines_are_kept(tmp_path: Path) -> None:
    script = (
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'found': 1, 'child': child.pid}), flush=True)\n"
        "time.sleep(600)\n"
    )
    record = Record(tmp_path / "gpu.jsonl")
    run_part(Part("slow", 10, ("-c", script)), os.environ, seconds=10, record=record)
    found, ended = lines_of(record.path)
    assert found["found"] == 1
    assert ended["ended"] == "killed after 10 s"
    assert record.failed
    wait_until_gone(int(str(found["child"])))


def wait_until_gone(pid: int) -> None:
    """Until ``pid`` has ended, or is an orphan that is dead and that nobody has reaped."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives")


def test_a_line_is_kept_and_printed_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The part goes on only when its line is in the file: whoever ends the whole script before has it."""
    out = tmp_path / "gpu.jsonl"
    script = (
        "import pathlib, time\n"
        "print('{\"found\": 1}', flush=True)\n"
        f"out = pathlib.Path({str(out)!r})\n"
        "while not (out.is_file() and 'found' in out.read_text()): time.sleep(0.05)\n"
    )
    run_part(Part("talking", 60, ("-c", script)), os.environ, seconds=60, record=Record(out))
    assert [line.get("ended", line.get("found")) for line in lines_of(out)] == [1, "done"]
    assert capsys.readouterr().out == out.read_text(encoding="utf-8")


def test_wheels_that_cannot_be_installed_end_the_script_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut-1.0-py3-none-any.whl").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    assert main(["--wheels", str(tmp_path), "--out", "gpu.jsonl", "--device", "cpu"]) == 1
    (line,) = lines_of(tmp_path / "gpu.jsonl")
    assert str(line["ended"]).startswith(f"the wheels in {tmp_path} cannot be installed: ")


def test_a_failing_part_says_its_last_lines_and_a_part_without_time_is_not_begun(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.jsonl")
    run_part(Part("wrong", 5, ("-c", "raise SystemExit('no such card')")), os.environ, seconds=5, record=record)
    run_part(Part("late", 5, ("-c", "print(1)")), os.environ, seconds=0.1, record=record)
    wrong, late = lines_of(record.path)
    assert wrong["ended"] == "exit code 1"
    assert wrong["last_lines"] == ["no such card"]
    assert str(late["ended"]).startswith("not begun")


def test_all_parts_but_the_last_leave_it_two_of_the_eight_minutes() -> None:
    names = [part.name for part in parts("sd21", "cuda", batch_size=16)]
    assert names == ["step plain", "step pixel", "step latent", "caching and evaluation", "tests", "step plain, compiled"]
    assert sum(part.seconds for part in parts("sd21", "cuda", batch_size=16)[:-1]) <= 350


@pytest.mark.slow
def test_gpu_tests_need_none_of_the_packages_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    """An H200's machine had no cryptography, which other tests' fixtures import: nothing of tests/gpu was run."""
    for missing in ("cryptography", "kubernetes", "kfp", "torchx", "dvc", "moto", "s3fs", "promql_parser"):
        (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('no {missing} here')\n")
    (tests,) = (part for part in parts("toy", "cpu", batch_size=2) if part.name == "tests")
    environment = {**os.environ, **tests.environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, *tests.arguments, "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "test_step_on_gpu" in done.stdout


@pytest.mark.slow
def test_the_script_runs_on_a_cpu_with_the_toys_shapes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    only = ("--only", "tests", "--only", "step latent", "--only", "caching")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--model", "toy", "--out", str(out), *only]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = {line["part"]: line["ended"] for line in lines_of(out) if "ended" in line}
    assert ended == {"tests": "done", "step latent": "done", "caching and evaluation": "done"}
    (step,) = (line for line in lines_of(out) if line["part"] == "step latent" and "ratio" in line)
    assert step["needed_gflop_per_sample"] > 0


@pytest.mark.slow
def test_a_part_that_is_cut_keeps_the_tests_that_it_ended(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(600)\n")
    (tests,) = (part for part in parts("toy", "cpu", batch_size=2) if part.name == "tests")
    arguments = (*tests.arguments[:-2], str(tmp_path / "test_one.py"))  # in the place of --confcutdir and tests/gpu
    record = Record(tmp_path / "gpu.jsonl")
    run_part(Part("tests", 15, arguments), {**os.environ, "PYTHONUNBUFFERED": "1"}, seconds=15, record=record)
    ended, last = lines_of(record.path)
    assert (str(ended["test"]).rpartition("::")[2], ended["outcome"]) == ("test_a", "passed")
    assert last["ended"] == "killed after 15 s"


def test_what_runs_on_a_cpu_finds_no_gpu() -> None:
    assert all(part.environment["CUDA_VISIBLE_DEVICES"] == "" for part in parts("toy", "cpu", batch_size=2))
    assert not any("CUDA_VISIBLE_DEVICES" in part.environment for part in parts("sd21", "cuda", batch_size=16))


def test_of_the_teachers_fifty_steps_one_warms_up() -> None:
    bench = Bench(Setting("toy", 32, "float32", "cpu", 1, 1, "eager", "contiguous", 1, 1.0), toy_sizes())
    calls: list[int] = []
    hook = bench.teacher.unet.register_forward_hook(lambda *_: calls.append(1))
    assert [line["work"] for line in measured(bench, decode_chunk=1)] == ["encode", "score", "student", "teacher"]
    hook.remove()
    assert len(calls) == 1 + 50
