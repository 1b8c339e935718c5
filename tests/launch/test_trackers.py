"""Trackers hear what a training reports; one that is absent, slow or broken neither ends nor slows it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rglcd import progress
from rglcd.errors import InputError, TryAgain
from rglcd.extras import install_command
from rglcd.launch import mlflow_tracker, trackers
from rglcd.launch.settings import ClusterSettings, load_settings
from rglcd.launch.tracker import Tracked, UnreachableError
from rglcd.launch.trackers import tracking
from rglcd.stages.table import stage_named
from tests.launch.scripted_mlflow import ScriptedMlflow, scripted_mlflow
from tests.tiny_line import tiny_config

DISTILL = stage_named("distill")
SECTIONS = {name: tiny_config().section(name) for name in DISTILL.sections}
PLACES = {"student": Path("artifacts/student")}


@pytest.fixture
def mlflow() -> Iterator[ScriptedMlflow]:
    with scripted_mlflow() as server:
        yield server


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_PAUSES", (0.02,))
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 2.0)
    monkeypatch.setattr(mlflow_tracker, "_SECONDS", 0.5)
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def train(settings: ClusterSettings, *, steps: range = range(1, 4), ends: Exception | None = None) -> None:
    with tracking(settings, DISTILL, SECTIONS, PLACES):
        for step in steps:
            progress.report("distill rg", done=step, total=9, unit="steps", distance=1 / step, look_judge=0.5)
        progress.report("distill rg", done=steps[-1], total=9, unit="steps")  # nothing to track
        if ends is not None:
            raise ends


def points(run: dict[str, list[dict[str, float]]], key: str) -> list[tuple[float, float]]:
    return [(metric["step"], metric["value"]) for metric in run["metrics"] if metric["key"] == key]


def test_mlflow_has_every_figure_at_its_step_and_the_settings(mlflow: ScriptedMlflow) -> None:
    train(ClusterSettings(mlflow=mlflow.address, mlflow_experiment="toys & co"))
    run = mlflow.run("distill rg")
    assert points(run, "distance") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert points(run, "look_judge") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert run["params"]["distillation.num_steps"] == "4"
    assert run["params"]["monitoring.kind"] == "none"
    assert run["status"] == "FINISHED"
    assert list(mlflow.experiments) == ["toys & co"]
    assert mlflow.authorizations == {None}


def test_a_run_that_is_stopped_and_goes_on_is_one_run(mlflow: ScriptedMlflow) -> None:
    settings = ClusterSettings(mlflow=mlflow.address)
    with pytest.raises(TryAgain):
        train(settings, ends=TryAgain("asked to"))
    assert mlflow.run("distill rg")["status"] == "KILLED"
    train(settings, steps=range(4, 6))
    run = mlflow.run("distill rg")
    assert [step for step, _ in points(run, "distance")] == [1, 2, 3, 4, 5]
    assert run["status"] == "FINISHED"


def test_a_run_that_fails_is_called_failed(mlflow: ScriptedMlflow) -> None:
    with pytest.raises(InputError):
        train(ClusterSettings(mlflow=mlflow.address), ends=InputError("bad"))
    assert mlflow.run("distill rg")["status"] == "FAILED"


def test_a_server_that_hiccups_misses_nothing(mlflow: ScriptedMlflow, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([503, 429, 500])
    mlflow.instead = lambda method: (status, {}, "") if (status := next(answers, None)) else None
    train(ClusterSettings(mlflow=mlflow.address))
    assert [step for step, _ in points(mlflow.run("distill rg"), "distance")] == [1, 2, 3]
    assert capsys.readouterr().err.count("rglcd: MLflow at") == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((302, {"Location": "http://127.0.0.1:1/login"}, ""), "it sends us elsewhere (302)"),
        ((200, {"Content-Type": "text/html"}, "<html>log in</html>"), "its answer is not JSON"),
        ((401, {}, "who are you?"), "it answers 401: who are you?"),
        ((200, {}, "[]"), "this is no MLflow server"),
    ],
)
def test_a_server_that_refuses_is_asked_once_and_said_once(
    mlflow: ScriptedMlflow, answer: tuple[int, dict[str, str], str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.instead = lambda method: answer
    train(ClusterSettings(mlflow=mlflow.address))
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert len(mlflow.calls) == 1


def test_an_absent_server_costs_a_run_nothing_but_a_moment_at_its_end(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.3)
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in (f"http://127.0.0.1:{silent.getsockname()[1]}", "http://127.0.0.1:9"):
            started, slowest = time.perf_counter(), 0.0
            with tracking(ClusterSettings(mlflow=address), DISTILL, SECTIONS, PLACES):
                for step in range(1, 2_001):
                    before = time.perf_counter()
                    progress.report("distill rg", done=step, total=2_000, unit="steps", distance=1.0)
                    slowest = max(slowest, time.perf_counter() - before)
            assert time.perf_counter() - started < 2
            assert slowest < 0.2
            assert capsys.readouterr().err.count(f"rglcd: MLflow at {address}: it ") == 1


def test_figures_that_are_not_finite_are_left_out_and_names_are_what_mlflow_takes(mlflow: ScriptedMlflow) -> None:
    with tracking(ClusterSettings(mlflow=mlflow.address), DISTILL, SECTIONS, PLACES):
        progress.report("distill rg", done=1, total=2, unit="steps", **{"distance": float("nan"), "look_my:scorer!": 0.25})
    assert [(metric["key"], metric["value"]) for metric in mlflow.run("distill rg")["metrics"]] == [("look_my_scorer_", 0.25)]


def test_credentials_go_to_the_server_alone_and_never_in_the_clear(mlflow: ScriptedMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    train(ClusterSettings(mlflow=mlflow.address))
    assert mlflow.authorizations == {"Bearer s3cret"}
    with pytest.raises(InputError, match="would travel unencrypted; name an https address") as refused:
        train(ClusterSettings(mlflow="http://mlflow.example.org"))
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in repr(mlflow_tracker.access_to("https://mlflow.example.org"))
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    assert mlflow_tracker.access_to("https://mlflow.example.org").authorization == "Basic YW5uYTo="


@pytest.mark.parametrize("address", ["mlflow.example.org", "ftp://x", "https://anna:secret@x", "https://x?a=b", "http://"])
def test_what_is_no_plain_address_is_refused_in_one_line(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RGLCD_MLFLOW", address)
    with pytest.raises(InputError, match=r"RGLCD_MLFLOW is .*; (it is an address such as|an address holds no credentials)"):
        load_settings()


def test_other_ranks_track_nothing(mlflow: ScriptedMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    train(ClusterSettings(mlflow=mlflow.address))
    assert mlflow.calls == []


def test_who_heard_the_progress_before_hears_it_still(mlflow: ScriptedMlflow) -> None:
    heard: list[progress.Event] = []
    with progress.reporting_to(heard.append):
        train(ClusterSettings(mlflow=mlflow.address))
    assert [event.done for event in heard] == [1, 2, 3, 3]


def test_without_tensorboard_installed_a_run_goes_on_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(ClusterSettings(tensorboard=str(tmp_path / "events")))
    assert "rglcd: TensorBoard: " in (said := capsys.readouterr().err)
    assert f"{install_command('tensorboard')}; the run goes on without it" in said


# --- the real ones --------------------------------------------------------------------------------


def environment_with(package: str, folder: Path) -> Path:
    """The Python of an environment that has ``package``: the one that a variable names, or one made now."""
    named = os.environ.get(f"RGLCD_TEST_{package.upper()}")
    if named:
        return Path(named)
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", folder / "bin" / "python", package], check=True)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_a_real_mlflow_server_has_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "_SECONDS", 20.0)
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 30.0)
    python = environment_with("mlflow", tmp_path / "environment")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, store = f"http://127.0.0.1:{port}", f"sqlite:///{tmp_path}/mlflow.db"
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", store, "--workers", "1"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            settings = ClusterSettings(mlflow=address, mlflow_experiment="a 'quoted' name")
            access = mlflow_tracker.access_to(address)
            tracker = mlflow_tracker.MlflowTracker(access, settings.mlflow_experiment, Tracked("distill", "digest", {}))
            deadline = time.monotonic() + 120
            while True:
                try:
                    tracker._ask("experiments/search", {"max_results": 1})
                    break
                except UnreachableError:
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
                    time.sleep(0.5)
            with pytest.raises(TryAgain):
                train(settings, ends=TryAgain("asked to"))
            train(settings, steps=range(4, 6))
            experiment = tracker._experiment_id()
            (run,) = tracker._ask("runs/search", {"experiment_ids": [experiment]})["runs"]
            assert run["info"]["status"] == "FINISHED"
            assert run["info"]["run_name"] == "distill rg"
            assert {"key": "distillation.num_steps", "value": "4"} in run["data"]["params"]
            history = tracker._ask(f"metrics/get-history?run_id={run['info']['run_id']}&metric_key=distance", None)["metrics"]
            assert [(metric["step"], metric["value"]) for metric in history] == [(step, 1 / step) for step in range(1, 6)]
        finally:
            os.killpg(server.pid, 15)


@pytest.mark.slow
def test_real_event_files_hold_what_was_logged(tmp_path: Path) -> None:
    """Written and read in an environment of their own, with this one's torch behind it."""
    python = environment_with("tensorboard", tmp_path / "environment")
    (script := tmp_path / "script.py").write_text(
        "import sys\n"
        "from tests.launch.test_trackers import train\n"
        "from rglcd.launch.settings import ClusterSettings\n"
        "settings = ClusterSettings(tensorboard=sys.argv[1])\n"
        "train(settings)\n"
        "train(settings, steps=range(3, 6))\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "from pathlib import Path\n"
        "(folder,) = Path(sys.argv[1]).iterdir()\n"
        "events = EventAccumulator(str(folder)).Reload()\n"
        "print(folder.name.rpartition('-')[0], [(event.step, round(event.value, 3)) for event in events.Scalars('distance')])\n"
    )
    ours = os.pathsep.join([*filter(None, sys.path), *(p for p in (str(Path(sys.executable).parent.parent / "lib"),))])
    ran = subprocess.run(
        [python, script, tmp_path / "events"], env=os.environ | {"PYTHONPATH": ours}, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "distill-rg [(1, 1.0), (2, 0.5), (3, 0.333), (4, 0.25), (5, 0.2)]", ran.stderr[-2000:]
