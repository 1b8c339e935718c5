"""Who the launcher is to the API server, and what happens when the server does not know it any more."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.conftest import Ended, completes
from tests.launch.scripted_api import Answer, ScriptedApi, ScriptedClock, refusal

Launch = Callable[..., Ended]

UNKNOWN = refusal(401, "Unauthorized")


def unless_known(api: ScriptedApi, answer: Answer):
    """``answer`` to everybody who does not have the token in force."""
    return lambda _method, _path: answer if api.calls[-1][3] != f"Bearer {api.token}" else None


ANONYMOUS = refusal(403, 'jobs is forbidden: User "system:anonymous" cannot get resource "jobs" in API group "batch.volcano.sh"')


@pytest.mark.parametrize("answer", [UNKNOWN, ANONYMOUS], ids=["401", "a helper program that gave no token"])
def test_who_logs_in_again_while_the_server_does_not_know_him_need_do_no_more(
    answer: Answer, api: ScriptedApi, clock: ScriptedClock, launch: Launch, tmp_path: Path
) -> None:
    api.script = completes(after=1500)
    clock.at(60, lambda: setattr(api, "token", "t2"))
    clock.at(700, lambda: (tmp_path / "kubeconfig").write_text(api.kubeconfig()))
    api.faults.append(unless_known(api, answer))
    ended = launch()
    assert (ended.code, len(api.submitted)) == (0, 1), ended.lines
    assert ended.has("log in again"), "that is what mends it"


def test_a_token_that_ran_out_for_good_ends_the_launcher_and_not_the_job(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    api.script = completes(after=10**6)
    clock.at(60, lambda: setattr(api, "token", "t2"))
    api.faults.append(unless_known(api, UNKNOWN))
    ended = launch()
    assert ended.code == 75
    assert clock.seconds > 3600
    assert "log in again" in ended.last
    assert "what runs there goes on, and the same command" in ended.last
    assert list(api.jobs) == ["rglcd-distill-r-1"]


@pytest.mark.parametrize("is_stopped", [False, True], ids=["followed", "stopped"])
def test_a_kubeconfig_that_is_being_written_is_waited_for(
    is_stopped: bool, api: ScriptedApi, clock: ScriptedClock, launch: Launch, tmp_path: Path
) -> None:
    api.script = completes(after=600)

    def log_in() -> None:
        api.token = "t2"
        (tmp_path / "kubeconfig").write_text("")

    clock.at(60, log_in)
    clock.at(200, lambda: (tmp_path / "kubeconfig").write_text(api.kubeconfig()))
    if is_stopped:
        clock.at(60, clock.stop.set)
    api.faults.append(unless_known(api, UNKNOWN))
    ended = launch()
    assert ended.code == (75 if is_stopped else 0), ended.lines
    assert api.deleted == (["rglcd-distill-r-1"] if is_stopped else [])


def test_a_kubeconfig_that_is_named_goes_before_the_pods_own_account(api: ScriptedApi, launch: Launch, tmp_path: Path, monkeypatch) -> None:
    """As in a notebook's pod, from which another cluster is to be used; and as every message says."""
    for name in ("TOKEN", "CERT"):
        (tmp_path / name).write_text("of another cluster")
        monkeypatch.setattr(f"kubernetes.config.incluster_config.SERVICE_{name}_FILENAME", str(tmp_path / name))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    ended = launch()
    assert ended.code == 0, ended.lines
    assert len(api.submitted) == 1
