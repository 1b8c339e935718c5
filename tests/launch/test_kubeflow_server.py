"""``python -m pipelines submit`` against a scripted Kubeflow: a run is said to be started when one is, and not else."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from rglcd.config import dump, load_preset
from tests.launch.conftest import IMAGE, Ended

Answer = tuple[int, str, dict[str, str]]
LOGIN: Answer = (302, "", {"Location": "/dex/auth?client_id=x"})
PAGE: Answer = (200, "<html>log in</html>", {"Content-Type": "text/html"})


class Kubeflow:
    """What of its API ``submit`` uses; ``gate`` answers in its place."""

    def __init__(self) -> None:
        self.multi_user, self.run_id = True, "run-1"
        self.gate: Callable[[BaseHTTPRequestHandler], Answer | None] = lambda _: None
        self.runs: list[dict[str, Any]] = []
        self.seen: list[dict[str, str]] = []
        self.known: dict[str, dict[str, Any]] = {}
        kubeflow = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                kubeflow.seen.append(dict(self.headers))
                status, text, headers = kubeflow.gate(self) or (200, json.dumps(kubeflow.answer(self.path, body)), {})
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_GET  # noqa: N815 (http.server's names)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.host = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        if "/healthz" in path:
            return {"multi_user": self.multi_user}
        if "/runs/" in path:
            return self.known[path.rpartition("/")[2]]
        if "/runs" in path:
            self.runs.append(body)
            return {"run_id": self.run_id} if self.run_id else {}
        return {"experiment_id": "e-1", "experiments": [{"experiment_id": "e-1", "display_name": "Default"}]}


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    server = Kubeflow()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def submit(kubeflow: Kubeflow, tmp_path: Path, monkeypatch, capsys) -> Callable[..., Ended]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    Path("params.yaml").write_text(dump(load_preset("micro")).replace("./toy/", "/store/toy/"))
    Path("data.dvc").write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: data\n")

    def run(*words: str, image: str = IMAGE) -> Ended:
        monkeypatch.setenv("RGLCD_IMAGE", image)
        code = 0
        try:
            main([*words[: words.index("submit")], "submit", "--host", kubeflow.host, "--no-plan", *words[words.index("submit") + 1 :]])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ended(code, (said.out + said.err).splitlines())

    return run


def test_address_of_the_run_is_printed(kubeflow: Kubeflow, submit) -> None:
    ended = submit("submit")
    assert ended.code == 0, ended.lines
    assert ended.last == f"run at {kubeflow.host}/#/runs/details/run-1"
    assert len(kubeflow.runs) == 1


@pytest.mark.parametrize("gate", [LOGIN, PAGE], ids=["redirect", "page"])
def test_a_login_page_is_no_run(gate: Answer, kubeflow: Kubeflow, submit) -> None:
    kubeflow.gate = lambda _: gate
    ended = submit("submit")
    assert ended.code == 2
    assert "answers with a login page" in ended.last
    assert "--token-file" in ended.last
    assert "--cookie-file" in ended.last


def test_token_and_cookies_of_files_open_the_door(kubeflow: Kubeflow, submit, tmp_path: Path) -> None:
    kubeflow.gate = lambda call: None if call.headers.get("Authorization") == "Bearer t1" and "s=1" in call.headers["Cookie"] else LOGIN
    (tmp_path / "token").write_text("t1\n")
    (tmp_path / "cookie").write_text("s=1\n")
    ended = submit("submit", "--token-file", "token", "--cookie-file", "cookie")
    assert ended.code == 0, ended.lines
    assert not ended.has("t1")


def test_token_that_kubeflow_mounts_into_a_pod_is_used(kubeflow: Kubeflow, submit, tmp_path: Path, monkeypatch) -> None:
    kubeflow.gate = lambda call: None if call.headers.get("Authorization") == "Bearer mounted" else (401, "{}", {})
    (tmp_path / "mounted").write_text("mounted")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "mounted"))
    assert submit("submit").code == 0
    assert len(kubeflow.runs) == 1


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((401, '{"error": "no"}', {}), 2, "does not let us in (401): give a token"),
        ((403, "RBAC: access denied", {}), 2, "does not let us in (403)"),
        ((404, "nothing here", {}), 2, "is no Kubeflow Pipelines API of version 2"),
        ((503, "upstream connect error", {}), 75, "answers 503 for the moment"),
    ],
)
def test_a_server_that_refuses_is_one_line(answer: Answer, code: int, words: str, kubeflow: Kubeflow, submit) -> None:
    kubeflow.gate = lambda _: answer
    ended = submit("submit")
    assert (ended.code, len(ended.lines)) == (code, 1)
    assert words in ended.last


def test_refusal_of_the_run_itself_is_one_line_without_headers(kubeflow: Kubeflow, submit) -> None:
    kubeflow.gate = lambda call: (400, '{"error": "quota of runs"}', {"X-Secret": "s"}) if call.command == "POST" else None
    ended = submit("submit")
    assert ended.code == 2
    assert "does not take the run: 400 Bad Request: quota of runs" in ended.last
    assert "X-Secret" not in ended.last


def test_a_server_that_is_away_when_the_run_is_to_start_may_be_asked_again(kubeflow: Kubeflow, submit) -> None:
    kubeflow.gate = lambda call: (503, "upstream connect error", {}) if call.command == "POST" else None
    ended = submit("submit")
    assert ended.code == 75
    assert "answers 503 for the moment, and may have started the run" in ended.last


@pytest.mark.parametrize(
    ("method", "words"), [("GET", "has not answered; the"), ("POST", "has not answered, and may have started the run: look")]
)
def test_a_server_that_breaks_off_may_be_asked_again(method: str, words: str, kubeflow: Kubeflow, submit) -> None:
    """It was 2, bad input, and: does not take the run."""

    def break_off(call: BaseHTTPRequestHandler) -> None:
        if call.command == method:
            raise ConnectionAbortedError

    kubeflow.gate = break_off
    kubeflow.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # it would print the traceback of what is raised here
    ended = submit("submit")
    assert ended.code == 75, ended.lines
    assert words in ended.last


def test_a_server_that_nobody_runs_is_refused(kubeflow: Kubeflow, submit) -> None:
    kubeflow.host = "http://127.0.0.1:9"
    ended = submit("submit")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "http://127.0.0.1:9 does not take the run" in ended.last


def test_an_answer_without_a_run_is_refused(kubeflow: Kubeflow, submit) -> None:
    kubeflow.run_id = ""
    ended = submit("submit")
    assert ended.code == 2
    assert "has started no run" in ended.last


def test_a_kubeflow_for_one_user_with_another_namespace_is_refused_before_anything_starts(kubeflow: Kubeflow, submit) -> None:
    kubeflow.multi_user = False
    ended = submit("submit")
    assert ended.code == 2
    assert "starts every run in its own namespace (kubeflow) and not in rglcd" in ended.last
    assert kubeflow.runs == []
    assert submit("submit", "--namespace", "kubeflow").code == 0


def test_integers_that_kubeflow_would_change_are_refused_by_their_key(kubeflow: Kubeflow, submit) -> None:
    ended = submit("--set", "distillation.seed=9007199254740993", "submit")
    assert ended.code == 2
    assert "distillation.seed is 9007199254740993: Kubeflow carries integers up to 2^53" in ended.last
    assert kubeflow.runs == []


def test_an_image_that_nobody_has_published_is_refused(kubeflow: Kubeflow, submit) -> None:
    ended = submit("submit", image="rg-lcd/python-train@sha256:" + "0" * 64)
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "make images first" in ended.last
    assert kubeflow.seen == []


def test_text_that_argo_would_expand_is_refused_by_its_key(kubeflow: Kubeflow, submit) -> None:
    ended = submit("--set", "model.teacher.uri=./{{workflow.name}}", "submit")
    assert ended.code == 2
    assert "model.teacher.uri is './{{workflow.name}}': Kubeflow's Argo expands '{{'" in ended.last
    assert kubeflow.runs == []


# --- taken up ------------------------------------------------------------------------------------


ASKED = {
    "experiment_id": "e-1",
    "pipeline_spec": {"pipeline_spec": {"pipelineInfo": {"name": "rg-lcd"}}, "platform_spec": {"platforms": {}}},
    "runtime_config": {"parameters": {"distillation": {"num_steps": 6}}},
    "service_account": "rglcd-launcher",
}
"""What a run says of itself that makes another one the same."""


def stopped(kubeflow: Kubeflow, state: str = "FAILED") -> dict[str, Any]:
    """A run that the server shows, in ``state``."""
    shown = {**ASKED, "run_id": "old-1", "display_name": "old", "state": state, "created_at": "2026-01-01T00:00:00Z"}
    kubeflow.known["old-1"] = shown
    return shown


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_stopped_is_taken_up_with_the_settings_that_it_had(state: str, kubeflow: Kubeflow, submit) -> None:
    stopped(kubeflow, state)
    Path("params.yaml").unlink()  # what is in force now does not matter
    ended = submit("submit", "--resume", "old-1")
    assert ended.code == 0, ended.lines
    assert ended.last == f"run at {kubeflow.host}/#/runs/details/run-1 takes up old-1: what is finished is found by key"
    (new,) = kubeflow.runs
    assert new == {**ASKED, "display_name": "old, taken up"}


@pytest.mark.parametrize(
    ("state", "words"),
    [("RUNNING", "run old-1 is running: wait for its end, or terminate it"), ("SUCCEEDED", "run old-1 has succeeded")],
)
def test_a_run_that_goes_on_or_is_done_is_not_taken_up(state: str, words: str, kubeflow: Kubeflow, submit) -> None:
    stopped(kubeflow, state)
    ended = submit("submit", "--resume", "old-1")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert words in ended.last
    assert kubeflow.runs == []


def test_a_run_that_is_not_known_or_says_no_more_what_it_was_is_refused(kubeflow: Kubeflow, submit) -> None:
    stopped(kubeflow).pop("pipeline_spec")
    assert "does not say any more what run old-1 was to do" in submit("submit", "--resume", "old-1").last
    kubeflow.gate = lambda call: (404, '{"error": "not found"}', {}) if "/runs/" in call.path else None
    ended = submit("submit", "--resume", "old/../2")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "knows no run old/../2 (404)" in ended.last
    assert kubeflow.runs == []


def test_taking_a_run_up_stops_at_a_login_page_and_takes_no_other_settings(kubeflow: Kubeflow, submit) -> None:
    stopped(kubeflow)
    kubeflow.gate = lambda call: LOGIN if "/runs" in call.path else None
    assert "answers with a login page" in submit("submit", "--resume", "old-1").last
    assert "--set makes another run" in submit("--set", "distillation.seed=1", "submit", "--resume", "old-1").last
    assert kubeflow.runs == []


def test_taking_a_run_up_says_that_it_may_have_started_where_the_server_does_not(kubeflow: Kubeflow, submit) -> None:
    stopped(kubeflow)
    kubeflow.gate = lambda call: (503, "upstream connect error", {}) if call.command == "POST" else None
    ended = submit("submit", "--resume", "old-1")
    assert (ended.code, len(ended.lines)) == (75, 1)
    assert "answers 503 for the moment, and may have started the run: look there" in ended.last
