"""An MLflow server of a hundred lines: the six calls that we make, what they were asked, and what it answers instead if a test says so."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class ScriptedMlflow:
    """What it holds. ``instead`` gives status, headers and body for a call that is to go otherwise; None for those that are not."""

    instead: Callable[[str], tuple[int, dict[str, str], str] | None] = lambda method: None
    calls: list[str] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    experiments: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""

    def run(self, task: str) -> dict[str, Any]:
        (found,) = [run for run in self.runs if run["run_name"] == task]
        return found

    def answer(self, method: str, query: dict[str, list[str]], content: Any) -> tuple[int, Any]:
        match method:
            case "experiments/get-by-name":
                name = query["experiment_name"][0]
                if name not in self.experiments:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
                return 200, {"experiment": {"experiment_id": self.experiments[name]}}
            case "experiments/create":
                self.experiments[content["name"]] = str(len(self.experiments) + 1)
                return 200, {"experiment_id": self.experiments[content["name"]]}
            case "runs/search":
                found = [
                    run for run in self.runs if all(f"'{run['tags'][tag]}'" in content["filter"] for tag in ("rglcd.run", "rglcd.task"))
                ]
                return 200, {"runs": [{"info": {"run_id": run["id"]}} for run in found]} if found else {}
            case "runs/create":
                tags = {tag["key"]: tag["value"] for tag in content["tags"]}
                made = {"id": f"run{len(self.runs)}", "run_name": content["run_name"], "tags": tags, "status": "RUNNING"}
                self.runs.append(made | {"metrics": [], "params": {}})
                return 200, {"run": {"info": {"run_id": made["id"]}}}
            case "runs/log-batch":
                (run,) = [run for run in self.runs if run["id"] == content["run_id"]]
                run["metrics"] += content.get("metrics", [])
                run["params"] |= {param["key"]: param["value"] for param in content.get("params", [])}
                return 200, {}
            case "runs/update":
                (run,) = [run for run in self.runs if run["id"] == content["run_id"]]
                run["status"] = content["status"]
                return 200, {"run_info": {}}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND"}


@contextmanager
def scripted_mlflow() -> Iterator[ScriptedMlflow]:
    state = ScriptedMlflow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve(None)

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _serve(self, content: Any) -> None:
            parts = urlsplit(self.path)
            method = parts.path.removeprefix("/api/2.0/mlflow/")
            state.calls.append(method)
            state.authorizations.add(self.headers.get("Authorization"))
            other = state.instead(method)
            if other is None:
                status, found = state.answer(method, parse_qs(parts.query), content)
                other = status, {"Content-Type": "application/json"}, json.dumps(found)
            status, headers, body = other
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
