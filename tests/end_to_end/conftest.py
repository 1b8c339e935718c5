"""A checkout of its own for each interface: the tracked files as they stand, with DVC, the toy's data and the micro preset."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from rglcd.config import load_preset
from rglcd.stages.table import stages_of
from rglcd.store.manifest import read_manifest

ROOT = Path(__file__).parents[2]
MICRO = load_preset("micro")
ARTIFACTS = tuple(stage.outputs[0] for stage in stages_of(MICRO))


@dataclass(frozen=True)
class Checkout:
    """A copy of the project that tests may run anything in."""

    root: Path

    def command(self, *words: str) -> list[str]:
        """The words, the first being a program of this environment."""
        return [str(Path(sys.executable).parent / words[0]), *words[1:]]

    def environment(self, **extra: str) -> dict[str, str]:
        paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{self.root / 'src'}:{self.root}"}
        return {**os.environ, **paths, "OMP_NUM_THREADS": "1", **extra}

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.root, env=self.environment(**(env or {})), capture_output=True, text=True, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command in a process group of its own, as a terminal would start it."""
        return subprocess.Popen(
            self.command(*words),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def digests(self) -> dict[str, str]:
        return {name: read_manifest(self.root / "artifacts" / name, made_by="?").digest for name in ARTIFACTS}


def make_checkout(root: Path) -> Checkout:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    (root / "dvc.lock").unlink(missing_ok=True)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    checkout = Checkout(root)
    for words in (("rglcd", "toy", "data", "data"), ("rglcd", "config", "use", "micro")):
        done = checkout.run(*words)
        assert done.returncode == 0, done.stderr
    return checkout


def make_line(root: Path) -> Checkout:
    """A checkout in which `rglcd run all` is through. Read it, do not write it."""
    made = make_checkout(root)
    done = made.run("rglcd", "run", "all")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path / "checkout")


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The micro line, run through by `rglcd run all`: what every other way must equal. Read it, do not write it."""
    return make_line(tmp_path_factory.mktemp("unbroken") / "checkout")
