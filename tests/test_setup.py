"""Set-up on other people's machines: which Python is taken, where torch comes from, what is said to be missing; and edited checkouts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFUSES = "#!/bin/sh\necho 'pyenv: version not installed' >&2\nexit 127\n"


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def python_of(version: str, *, venv: bool = True) -> str:
    """A stand-in for a Python of ``version``: a real one that says so of itself."""
    hide = "" if venv else "sys.modules['ensurepip'] = None; "
    major, minor = version.split(".")
    head = f"import sys; sys.version_info = ({major}, {minor}, 0); {hide}exec(sys.argv[1])"
    return f'#!/bin/sh\nshift\nexec {sys.executable} -c "{head}" "$@"\n'


def chosen(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", ROOT / ".ci/python"], env={"PATH": str(folder)}, capture_output=True, text=True, check=False)


def test_a_python_that_runs_is_taken_and_a_shim_that_refuses_is_not(tmp_path: Path) -> None:
    """As on Ubuntu 24.04, which has 3.12 alone, beside pyenv's shims of versions that are not in force."""
    for name in ("python3.11", "python3.13"):
        program(tmp_path, name, REFUSES)
    program(tmp_path, "python3", python_of("3.12"))
    assert chosen(tmp_path).stdout == "python3\n"
    program(tmp_path, "python3.12", python_of("3.12"))
    assert chosen(tmp_path).stdout == "python3.12\n"
    program(tmp_path, "python3.11", python_of("3.11"))
    assert chosen(tmp_path).stdout == "python3.11\n"


@pytest.mark.parametrize(
    ("pythons", "said"),
    [
        ({}, "no Python of 3.11 to 3.13 runs here: apt-get install python3 python3-venv"),
        ({"python3": python_of("3.9")}, "no Python of 3.11 to 3.13 runs here"),
        ({"python3": python_of("3.14")}, "no Python of 3.11 to 3.13 runs here"),
        ({"python3": python_of("3.12", venv=False)}, "python3 cannot make environments: apt-get install python3.12-venv"),
    ],
)
def test_no_python_is_one_line_that_says_how_to_get_it(tmp_path: Path, pythons: dict[str, str], said: str) -> None:
    tmp_path.mkdir(exist_ok=True)
    for name, text in pythons.items():
        program(tmp_path, name, text)
    ran = chosen(tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert said in line


def torch_asked_for(tmp_path: Path, *, index_answers: bool = True, gpu: bool = False, **settings: str) -> list[str]:
    """The lines of arguments with which uv was called."""
    log = tmp_path / "log"
    refuse = "" if index_answers else 'case "$*" in *torch-backend*) exit 2;; esac\n'
    program(tmp_path / "bin", "uv", f'#!/bin/sh\necho "$@" >>{log}\n{refuse}')
    program(tmp_path / "bin", "nvidia-smi", f"#!/bin/sh\nexit {0 if gpu else 9}\n")
    command = ["/bin/sh", ROOT / ".ci/torch", tmp_path / "bin/uv", "PY", "torch==2.13.0"]
    subprocess.run(command, env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", **settings}, capture_output=True, check=True)
    return log.read_text().splitlines()


def test_without_a_gpu_the_cpu_build_is_asked_for(tmp_path: Path) -> None:
    plain, cpu = "pip install --quiet --python PY torch==2.13.0", "pip install --quiet --python PY --torch-backend cpu torch==2.13.0"
    assert torch_asked_for(tmp_path / "a") == [cpu]
    assert torch_asked_for(tmp_path / "b", index_answers=False) == [cpu, plain]
    assert torch_asked_for(tmp_path / "c", gpu=True) == [plain]
    assert torch_asked_for(tmp_path / "d", UV_FIND_LINKS="/wheels") == [plain]


def test_the_demo_says_at_once_what_it_lacks(tmp_path: Path) -> None:
    for name in ("awk", "df"):
        program(tmp_path, name, f'#!/bin/sh\nexec {shutil.which(name)} "$@"\n')
    needs = ["/bin/sh", ROOT / ".ci/demo-needs"]
    ran = subprocess.run(needs, env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "git, which is missing: apt-get install git" in ran.stderr
    program(tmp_path, "git", "#!/bin/sh\n")
    program(tmp_path, "df", "#!/bin/sh\necho Filesystem\necho /dev/x 9000000 5000000 4000000 60% /\n")
    ran = subprocess.run(needs, env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "needs 6 GB of disk, and 4 GB are free" in ran.stderr


@pytest.mark.slow
def test_the_tests_of_the_configuration_pass_in_a_checkout_whose_params_were_edited(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    rglcd = [sys.executable, "-m", "rglcd"]
    subprocess.run([*rglcd, "config", "set", "reward.weight=0.9", "model.teacher=../models/sd15"], cwd=tmp_path, check=True)
    tests = ["tests/test_config.py", "tests/launch/test_dvc_file.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *tests], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
