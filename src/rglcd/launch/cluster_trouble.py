"""What went wrong with a call to the API server: worth another try, or the last word; in words for the person who waits. Pure."""

import json
import re
import sys
from dataclasses import dataclass
from typing import Any

from kubernetes.client.rest import ApiException
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ProxyError, ReadTimeoutError, SSLError

SAID_EVERY_SECONDS = 60.0

_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})
"""Beside 5xx. https://kubernetes.io/docs/reference/using-api/api-concepts/ and the client-go library's own retries"""

_NO_RIGHT = re.compile(r"cannot (\w+) resource")
"""How the authorizer refuses, apart from a quota's or an admission webhook's 403."""

_NOBODY = 'User "system:anonymous"'
"""Whom a call without a token is of: a helper program that failed gives none."""


@dataclass(frozen=True)
class Trouble:
    """``what`` happened. ``is_final``: the first call takes it for an answer, a later one only when it has lasted ``patience`` seconds."""

    what: str
    advice: str = ""
    is_final: bool = False
    patience: float = 300.0
    retry_after: float = 0.0
    is_unauthorized: bool = False
    is_nobody_there: bool = False

    def in_one_line(self, host: str) -> str:
        """For a person: what, where, what to do."""
        return f"the API server at {host}: {self.what}" + (f"; {self.advice}" if self.advice else "")


def trouble_of(error: Exception, *, is_first: bool) -> Trouble | None:
    """What ``error`` of a call is; ``None`` if the server has answered, and refuses what was asked."""
    match error:
        case ApiException(status=0) | SSLError():
            said = " ".join(str(error.reason if isinstance(error, ApiException) else error).split())
            return Trouble(f"no secure connection ({said[:200]})", "its certificate must be one that the kubeconfig trusts", is_final=True)
        case ApiException():
            return _of_status(error, is_first=is_first)
        case NameResolutionError():
            return Trouble("its name is not known", _OTHER_CLUSTER, is_nobody_there=True)
        case NewConnectionError() | ProxyError():
            said = "connection refused" if "refused" in str(error) else "no connection"
            return Trouble(said, _OTHER_CLUSTER, is_nobody_there=True)
        case ReadTimeoutError() | ConnectTimeoutError() | TimeoutError():
            return Trouble("silence", _OTHER_CLUSTER)
    return Trouble(" ".join(str(error).split())[:200] or type(error).__name__, _OTHER_CLUSTER)


_OTHER_CLUSTER = "start it, or name another cluster: KUBECONFIG, or kubectl config use-context"


def _of_status(error: ApiException, *, is_first: bool) -> Trouble | None:
    status = int(error.status)
    if status == 401 or (status == 403 and _NOBODY in said(error)):
        advice = "log in again (kubectl get pods shows whether it helped), or name another cluster by KUBECONFIG"
        return Trouble(f"{status}, it does not know who you are", advice, is_final=True, is_unauthorized=True, patience=3600)
    if status == 403 and _NO_RIGHT.search(said(error)):
        advice = "the Role rglcd-launcher of manifests/ has what is needed (rglcd doctor --cluster shows all of it)"
        return Trouble(f"403, {said(error)}", advice, is_final=True)
    if status == 404 and not is_answer_of_its_own(error) and not is_first:
        return Trouble("404 for every object of a kind that was there before")
    if status in _WORTH_ANOTHER_TRY or status >= 500 or _is_lost_race(error):
        return Trouble(f"{status} {error.reason}: {said(error)}"[:200], retry_after=_retry_after(error))
    return None


def _is_lost_race(error: ApiException) -> bool:
    """Whether two requests counted towards one quota at once, of which one is to be made again (kubernetes/kubernetes#67761).

    What is there already has the same status, and another reason (AlreadyExists).
    """
    return int(error.status) == 409 and is_answer_of_its_own(error) and json.loads(error.body).get("reason") == "Conflict"


def is_answer_of_its_own(error: ApiException) -> bool:
    """Whether the body is a ``Status``: a path that no server knows is answered with plain text."""
    try:
        return bool(json.loads(error.body)["kind"] == "Status")
    except (ValueError, TypeError, KeyError):
        return False


def said(error: ApiException) -> str:
    """The server's own words, in one line."""
    try:
        return " ".join(str(json.loads(error.body)["message"]).split())
    except (ValueError, TypeError, KeyError):
        return str(error.reason)


def _retry_after(error: ApiException) -> float:
    headers: Any = error.headers or {}
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))
    except ValueError:  # a date: the pauses of our own will do
        return 0.0


def duration(seconds: float) -> str:
    """For people: seconds, minutes, hours."""
    if seconds < 120:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(message: str) -> None:
    """One line for the person who launched."""
    print(message, file=sys.stderr, flush=True)
