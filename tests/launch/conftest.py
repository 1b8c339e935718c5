"""``rglcd launch`` against a scripted API server, through the command line."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.config import dump, load_preset
from tests.launch.scripted_api import Scene, Script, ScriptedApi, ScriptedClock

IMAGE = "registry/train@sha256:" + "a" * 64


@dataclass(frozen=True)
class Ended:
    """How the command ended: its exit code, and the lines that it said."""

    code: int
    lines: list[str]

    @property
    def last(self) -> str:
        return self.lines[-1]

    def has(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def clock(monkeypatch) -> ScriptedClock:
    made = ScriptedClock()
    monkeypatch.setattr("rglcd.launch.cluster_client.Clock", lambda: made)
    monkeypatch.setattr("rglcd.launch.cluster_client.TIMEOUTS", (1.0, 0.5))  # less than SILENCE lasts
    return made


@pytest.fixture
def api(clock: ScriptedClock, tmp_path: Path, monkeypatch) -> Iterator[ScriptedApi]:
    """The server; its script is a job that runs for a minute and completes, until a test says otherwise."""
    server = ScriptedApi(completes(after=60), clock)
    (tmp_path / "kubeconfig").write_text(server.kubeconfig())
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield server
    server.close()


@pytest.fixture
def launch(tmp_path: Path, monkeypatch, capsys) -> Callable[..., Ended]:
    """``rglcd launch distill`` in a project of its own."""
    for variable in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(variable, raising=False)
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    Path("params.yaml").write_text(dump(load_preset("micro")))

    def run(*words: str, image: str = IMAGE) -> Ended:
        code = 0
        try:
            code = main(["launch", "distill", "--no-plan", "--run", "r", "--image", image, *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ended(code, capsys.readouterr().err.splitlines())

    return run


def completes(*, after: float) -> Script:
    from tests.launch.scripted_api import pod

    return lambda age, _attempt: Scene("Completed", [pod("Succeeded", code=0)]) if age >= after else Scene("Running", [pod()])
