"""MLflow by its REST API (https://mlflow.org/docs/latest/rest-api.html): no client of theirs is needed.

A task is a run of the experiment; the same command, run again, goes on with the run that it had. Credentials are MLflow's own variables:
``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``.
"""

import http.client
import json
import math
import os
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any, Final
from urllib.parse import quote, urlsplit

from rglcd.errors import InputError
from rglcd.launch.tracker import RefusedError, Row, Tracked, UnreachableError

_SECONDS: Final = 5.0
_LARGEST_ANSWER: Final = 1 << 20
_LONGEST_VALUE: Final = 500
"""Of a parameter, which older servers limit so."""

_MOST_AT_ONCE: Final = 100
"""Parameters in one request, as the API has it; of metrics it takes 1,000."""

_STATUS: Final = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_\-. /]")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """The server's address, and what it knows us by."""

    address: str
    authorization: str | None = field(default=None, repr=False)


def access_to(address: str) -> Access:
    """With the credentials of the environment. Raises :class:`InputError` where they would travel in the clear."""
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not token and not user:
        return Access(address)
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise InputError(
            f"mlflow is {address}, and MLFLOW_TRACKING_* holds credentials, which would travel unencrypted; name an https address"
        )
    if token:
        return Access(address, f"Bearer {token}")
    pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return Access(address, f"Basic {b64encode(pair.encode()).decode()}")


class MlflowTracker:
    """The runs of one stage."""

    def __init__(self, access: Access, experiment: str, tracked: Tracked) -> None:
        self._access, self._experiment, self._tracked = access, experiment, tracked
        self._runs: dict[str, str] = {}

    def log(self, rows: Sequence[Row]) -> None:
        for task in dict.fromkeys(row.task for row in rows):
            run = self._run(task)
            metrics = [metric for row in rows if row.task == task for metric in _metrics(row)]
            for start in range(0, len(metrics), 10 * _MOST_AT_ONCE):
                self._ask("runs/log-batch", {"run_id": run, "metrics": metrics[start : start + 10 * _MOST_AT_ONCE]})

    def end(self, outcome: str) -> None:
        for run in self._runs.values():
            self._ask("runs/update", {"run_id": run, "status": _STATUS[outcome]})

    def _run(self, task: str) -> str:
        """The id of the run of ``task``: the one that the same command had, or a new one."""
        if task not in self._runs:
            experiment = self._experiment_id()
            # Both are ours: a digest, and a name without quotes.
            wanted = f"tags.\"rglcd.run\" = '{self._tracked.digest}' and tags.\"rglcd.task\" = '{task}'"
            found = self._ask("runs/search", {"experiment_ids": [experiment], "filter": wanted, "max_results": 1}).get("runs", [])
            self._runs[task] = self._taken_up(found[0]["info"]["run_id"]) if found else self._new_run(task, experiment)
        return self._runs[task]

    def _taken_up(self, run: str) -> str:
        self._ask("runs/update", {"run_id": run, "status": "RUNNING"})
        return run

    def _new_run(self, task: str, experiment: str) -> str:
        tags = {"rglcd.run": self._tracked.digest, "rglcd.task": task, "rglcd.stage": self._tracked.stage}
        asked = {"experiment_id": experiment, "run_name": task, "tags": [{"key": key, "value": value} for key, value in tags.items()]}
        run = str(self._ask("runs/create", asked)["run"]["info"]["run_id"])
        settings = [{"key": key, "value": value[:_LONGEST_VALUE]} for key, value in self._tracked.settings.items()]
        for start in range(0, len(settings), _MOST_AT_ONCE):
            self._ask("runs/log-batch", {"run_id": run, "params": settings[start : start + _MOST_AT_ONCE]})
        return run

    def _experiment_id(self) -> str:
        found = self._ask(f"experiments/get-by-name?experiment_name={quote(self._experiment, safe='')}", None)
        if not found:
            found = {"experiment": self._ask("experiments/create", {"name": self._experiment})}
        return str(found["experiment"]["experiment_id"])

    def _ask(self, method: str, content: Any) -> dict[str, Any]:
        """The answer as an object; an empty one for what is not there. ``content`` None: only asked for, not sent."""
        data = None if content is None else json.dumps(content, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        if self._access.authorization is not None:
            headers["Authorization"] = self._access.authorization
        url = f"{self._access.address}/api/2.0/mlflow/{method}"
        request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 (the setting's validator admits http and https alone)
        try:
            with _OPENER.open(request, timeout=_SECONDS) as answer:
                found = json.loads(answer.read(_LARGEST_ANSWER))
        except urllib.error.HTTPError as error:
            return self._explained(error)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"it cannot be reached ({error})") from None
        except ValueError:
            raise RefusedError("its answer is not JSON: is this the address of an MLflow server, or of a page before it?") from None
        if not isinstance(found, dict):
            raise RefusedError("its answer is no object: this is no MLflow server")
        return found

    def _explained(self, error: urllib.error.HTTPError) -> dict[str, Any]:
        said = error.read(_LONGEST_VALUE).decode(errors="replace")
        if error.code == 404 and "RESOURCE_DOES_NOT_EXIST" in said:
            return {}
        if error.code in (408, 429) or error.code >= 500:
            raise UnreachableError(f"it answers {error.code} for the moment")
        if error.code in (301, 302, 303, 307, 308):
            raise RefusedError(f"it sends us elsewhere ({error.code}): name the address itself; a page to log in is none")
        raise RefusedError(f"it answers {error.code}: {said}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Credentials go where they were meant to go."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


def _metrics(row: Row) -> list[dict[str, Any]]:
    """The finite figures: JSON has no others."""
    return [
        {"key": _NOT_IN_NAMES.sub("_", name), "value": value, "timestamp": int(row.seconds * 1000), "step": row.step}
        for name, value in row.values.items()
        if math.isfinite(value)
    ]
