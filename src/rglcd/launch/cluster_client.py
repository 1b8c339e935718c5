"""A Kubernetes client that lasts a week: every call has a time limit, and what the API server answers badly is asked again.

Control planes are upgraded, leaders change, connections are reset, tokens run out: none of that is an event for a job that runs.
"""

import copy
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any

from kubernetes import client, config
from kubernetes.client import rest
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from rglcd.errors import InputError, TryAgain
from rglcd.launch.cluster_trouble import SAID_EVERY_SECONDS, Trouble, duration, say, trouble_of

TIMEOUTS = (10.0, 30.0)
"""Seconds for a connection and for each wait for bytes. A log stream that is silent for long is taken up again."""
LOG_TIMEOUTS = (10.0, 300.0)

FIRST_SECONDS, FIRST_SECONDS_IN_A_POD = 30.0, 600.0
"""How long the first answer is tried for: a person waits for it, or Kubeflow."""
LATER_SECONDS = 3600.0
"""How long a server that answered before is tried for: longer than an upgrade of a control plane takes."""
LONGEST_PAUSE = 30.0
LONGEST_ASKED_PAUSE = 300.0
"""Seconds; a server's Retry-After may ask for more than the pauses of our own, and not for any length."""


class StopRequested(Exception):  # noqa: N818 (nothing went wrong)
    """Asked to stop while the API server was being waited for."""


class Clock:
    """Time, and pauses that a request to stop ends. Tests bring one that does not sleep."""

    def __init__(self) -> None:
        self.stop, self.give_up = threading.Event(), threading.Event()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Wait; after a first request to stop only a second one ends it."""
        (self.give_up if self.stop.is_set() else self.stop).wait(seconds)


class PatientClient(client.ApiClient):  # type: ignore[misc]
    """An ``ApiClient`` whose every call is repeated until it is answered well, refused, or given up.

    Raises :class:`InputError` where the first answer says that nobody will get one (no rights, no such server), :class:`TryAgain`
    when the server does not answer for :data:`LATER_SECONDS`, :class:`StopRequested` when asked to stop meanwhile. What the
    server refuses for the call's own sake stays an ``ApiException``. ``reload`` reads the credentials anew. A client that ``only_asks``
    takes every call for its first.
    """

    def __init__(
        self,
        configuration: client.Configuration,
        *,
        reload: Callable[[], client.Configuration] | None = None,
        clock: Clock | None = None,
        first_seconds: float = FIRST_SECONDS,
        only_asks: bool = False,
    ) -> None:
        super().__init__(_without_retries(configuration))
        self.clock = clock or Clock()
        self._reload, self._first_seconds = reload, first_seconds
        self._only_asks, self._has_answered = only_asks, False
        self._reminder: str | None = None

    @contextmanager
    def insisting(self, reminder: str) -> Iterator[None]:
        """Within this context calls are tried without end, ``reminder`` being said while they fail; a second request to stop ends them."""
        self._reminder = reminder
        try:
            yield
        finally:
            self._reminder = None

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Any = None,
        post_params: Any = None,
        body: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> Any:
        """As ``ApiClient.request``, patiently; a stream (``_preload_content=False``) is asked for once."""

        def once() -> Any:
            limits = _request_timeout or (TIMEOUTS if _preload_content else LOG_TIMEOUTS)
            answer = super(PatientClient, self).request(
                method, url, query_params, headers, post_params, body, _preload_content=_preload_content, _request_timeout=limits
            )
            if _preload_content:
                _require_an_answer(answer)
            return answer

        if not _preload_content:
            return once()
        return self._patiently(once, renew=lambda: self._renew(headers, query_params))

    def _patiently(self, once: Callable[[], Any], *, renew: Callable[[], bool]) -> Any:
        waiting = _Waiting(self, began=self.clock.monotonic())
        while True:
            try:
                answer = once()
            except (ApiException, HTTPError, OSError, HTTPException, _NoAnswer) as error:
                trouble = trouble_of(error, is_first=not self._has_answered)
                if trouble is None:
                    self._has_answered = not self._only_asks
                    raise
                if trouble.is_unauthorized and waiting.is_time_to_renew() and renew():
                    continue
                waiting.after(trouble)
            else:
                self._has_answered = not self._only_asks
                waiting.over()
                return answer

    def _renew(self, headers: Any, query_params: Any) -> bool:
        """Credentials as they are now: tokens are replaced in their file, and by the cloud's helper program."""
        if self._reload is None:
            return False
        try:
            renewed = self._reload()
        except InputError:  # a kubeconfig that is being written just now: what was known may do again
            return False
        self.configuration = _without_retries(renewed)
        self.rest_client = rest.RESTClientObject(self.configuration)
        headers.pop("authorization", None)
        self.update_params_for_auth(headers, query_params, ["BearerToken"])
        return True

    @property
    def host(self) -> str:
        return str(self.configuration.host)


@dataclass
class _Waiting:
    """One call that is tried again and again."""

    api: PatientClient
    began: float
    tries: int = 0
    said_at: float | None = None
    renewed_at: float | None = None

    def is_time_to_renew(self) -> bool:
        """At once, and then once a minute: somebody logs in meanwhile, or the cloud's helper program works again."""
        now = self.api.clock.monotonic()
        if self.renewed_at is not None and now - self.renewed_at < SAID_EVERY_SECONDS:
            return False
        self.renewed_at = now
        return True

    def after(self, trouble: Trouble) -> None:
        """Pause before the next try; raises when there is to be none."""
        api, clock = self.api, self.api.clock
        self.tries += 1
        waited = clock.monotonic() - self.began
        is_first, insists = not api._has_answered, api._reminder is not None
        if not insists and clock.stop.is_set():
            raise StopRequested
        if insists and clock.give_up.is_set():
            raise TryAgain(f"given up: {api._reminder}")
        if trouble.is_final and is_first:
            raise InputError(trouble.in_one_line(api.host))
        if trouble.is_final and waited > trouble.patience and not insists:
            raise TryAgain(f"{trouble.in_one_line(api.host)}; what runs there goes on, and the same command follows it")
        if not insists and waited >= (api._first_seconds if is_first else LATER_SECONDS):
            self._give_up(trouble, waited)
        self._say(trouble, waited)
        clock.pause(max(min(2.0 ** (self.tries - 1), LONGEST_PAUSE), min(trouble.retry_after, LONGEST_ASKED_PAUSE)))

    def over(self) -> None:
        if self.said_at is not None:
            say(f"the API server answers again, after {duration(self.api.clock.monotonic() - self.began)}")

    def _give_up(self, trouble: Trouble, waited: float) -> None:
        if trouble.is_nobody_there and not self.api._has_answered:
            raise InputError(trouble.in_one_line(self.api.host))
        goes_on = "what runs there goes on, and " if self.api._has_answered else ""
        message = f"the API server at {self.api.host} has not answered for {duration(waited)} ({trouble.what})"
        raise TryAgain(f"{message}; {goes_on}the same command tries again")

    def _say(self, trouble: Trouble, waited: float) -> None:
        """Not after the first failure, which the next second mends as a rule; then at once, and once a minute."""
        now = self.api.clock.monotonic()
        if self.tries < 2 or (self.said_at is not None and now - self.said_at < SAID_EVERY_SECONDS):
            return
        self.said_at = now
        more = self.api._reminder or (f"{trouble.advice}; trying again" if trouble.is_final else "trying again")
        say(f"the API server at {self.api.host} does not answer well for {duration(waited)} now ({trouble.what}); {more}")


class _NoAnswer(Exception):  # noqa: N818 (what came, not what went wrong)
    """An answer of status 200 that no API server gives."""


def _require_an_answer(answer: Any) -> None:
    """A proxy's login page has status 200 too, and a body that was cut is no JSON."""
    kind = answer.getheader("Content-Type") or ""
    if "html" in kind:
        raise _NoAnswer("a web page instead of an answer: a login page, or a proxy's")
    if "json" in kind:
        try:
            json.loads(answer.data)
        except ValueError:
            raise _NoAnswer("an answer that is not whole") from None


def _without_retries(configuration: client.Configuration) -> client.Configuration:
    """urllib3's own retries know neither pauses nor a person who waits."""
    given = copy.copy(configuration)
    given.retries = False
    return given


def cluster_client(*, only_asks: bool = False) -> PatientClient:
    """A client by the kubeconfig that KUBECONFIG names, or by the pod's ServiceAccount, or by the usual kubeconfig.

    Raises :class:`InputError` without any.
    """
    configuration, is_in_a_pod = _configuration()
    seconds = FIRST_SECONDS_IN_A_POD if is_in_a_pod else FIRST_SECONDS
    return PatientClient(configuration, reload=lambda: _configuration()[0], first_seconds=seconds, only_asks=only_asks)


def _configuration() -> tuple[client.Configuration, bool]:
    configuration, named = client.Configuration(), os.environ.get("KUBECONFIG")
    if not named:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            pass
        else:
            return configuration, True
    try:
        config.load_kube_config(named or "~/.kube/config", client_configuration=configuration)
    except Exception as error:  # a file of somebody else's, read by somebody else's loader: whatever is wrong with it
        said = " ".join(str(error).split())
        raise InputError(f"no cluster: {said}; set KUBECONFIG, or run in a pod with a ServiceAccount") from None
    return configuration, False
