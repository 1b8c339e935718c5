"""A Kubeflow Pipelines server: who we are to it, whether it is one, and a run that it really has started."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rglcd.errors import InputError, TryAgain

SECONDS = 30.0
_TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105 (a place, not a token)
_PERHAPS = ", and may have started the run: look there first"
_WAYS_IN = "give a token (--token-file) or the cookies that a browser got there (--cookie-file)"
LARGEST_INTEGER = 2**53
"""Kubeflow carries numbers as doubles (protobuf's Struct): https://protobuf.dev/reference/protobuf/google.protobuf/#value"""


@dataclass(frozen=True)
class Access:
    """Who we are to the server: the contents of a token's and of a cookie's file, and a file of authorities to trust beside the usual."""

    token: str | None = None
    cookies: str | None = None
    authorities: str | None = None

    @classmethod
    def of_files(cls, *, token: Path | None, cookies: Path | None, authorities: Path | None) -> "Access":
        """Without a token's file: the one that ``KF_PIPELINES_SA_TOKEN_PATH`` names, or that Kubeflow mounts into pods, if there is one.

        https://www.kubeflow.org/docs/components/pipelines/user-guides/core-functions/connect-api/
        """
        if authorities is not None and not authorities.is_file():
            raise InputError(f"--ca {authorities} is no file")
        mounted = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or _TOKEN_PATH)
        if token is None and (mounted.is_file() or "KF_PIPELINES_SA_TOKEN_PATH" in os.environ):
            token = mounted
        return cls(_content(token), _content(cookies), None if authorities is None else str(authorities))

    @property
    def headers(self) -> dict[str, str]:
        token = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {**token, **({"Cookie": self.cookies} if self.cookies else {})}


def _content(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        content = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not content or "\n" in content:
        raise InputError(f"{path} must hold one line")
    return content


def require_kubeflow(host: str, access: Access, *, namespace: str, own_namespace: str) -> None:
    """Raises :class:`InputError` unless ``host`` is a Kubeflow Pipelines server that knows us and puts runs into ``namespace``.

    A server for one user ignores the namespace of a run and uses its own, ``own_namespace``
    (kubeflow/pipelines, backend/src/apiserver/resource/resource_manager.go); there, neither claim nor accounts of the run exist.
    """
    health = _health(host, access)
    if not health.get("multi_user") and namespace != own_namespace:
        raise InputError(
            f"{host} is a Kubeflow for one user, which starts every run in its own namespace ({own_namespace}) and not in {namespace}: "
            f"apply manifests/ there and say --namespace {own_namespace}, or use a Kubeflow for several users, with {namespace} a Profile's"
        )


def _health(host: str, access: Access) -> dict[str, Any]:
    answer = _answer(host, access, "GET", "healthz")
    health = _content_of(answer)
    if answer.status != 200 or health is None:
        raise InputError(f"{host} is no Kubeflow Pipelines API of version 2: /apis/v2beta1/healthz answers {answer.status}")
    return health


def _answer(host: str, access: Access, method: str, path: str, *, body: Mapping[str, Any] | None = None) -> Any:
    """The API's own answer, good or bad; raises for what stands before it, and for a server that is away."""
    import urllib3

    pool = urllib3.PoolManager(retries=False, timeout=SECONDS, ca_certs=access.authorities)
    headers = {**access.headers, **({} if body is None else {"Content-Type": "application/json"})}
    url = f"{host.rstrip('/')}/apis/v2beta1/{path}"
    try:
        answer = pool.request(method, url, headers=headers, body=None if body is None else json.dumps(body), redirect=False)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise _unanswered(error, host, may_have_started=method == "POST") from None
    if answer.status in (301, 302, 303, 307, 308) or "html" in answer.headers.get("Content-Type", ""):
        to = answer.headers.get("Location")
        raise InputError(f"{host} answers with a login page{f' ({to[:100]})' if to else ''}: {_WAYS_IN}")
    if answer.status in (401, 403):
        raise InputError(f"{host} does not let us in ({answer.status}): {_WAYS_IN}")
    if _is_momentary(answer.status):
        raise TryAgain(f"{host} answers {answer.status} for the moment{_PERHAPS if method == 'POST' else ''}; the same command tries again")
    return answer


def _unanswered(error: Exception, host: str, *, may_have_started: bool) -> InputError | TryAgain:
    """What to raise for ``error``, urllib3's: nobody is there, or somebody was and has not answered what was asked."""
    from urllib3.exceptions import ProtocolError, ReadTimeoutError

    said = " ".join(str(error).split())[:300]
    if not isinstance(getattr(error, "reason", error), (ProtocolError, ReadTimeoutError)):  # after retries the last error is the reason
        return InputError(f"{host} does not take the run: {said}")
    return TryAgain(f"{host} has not answered{_PERHAPS if may_have_started else ''}; the same command tries again ({said})")


def _is_momentary(status: int) -> bool:
    return status in (408, 429) or status >= 500


def _content_of(answer: Any) -> dict[str, Any] | None:
    try:
        content = json.loads(answer.data)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def start_run(pipeline: Any, arguments: Mapping[str, Any], *, host: str, access: Access, namespace: str, service_account: str) -> str:
    """Start a run of ``pipeline``; return the address of its page.

    Raises :class:`InputError` if the server has not started one, :class:`TryAgain` if it could not say whether it has.
    """
    from kfp.client import Client
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        client = Client(host=host, namespace=namespace, existing_token=access.token, cookies=access.cookies, ssl_ca_cert=access.authorities)
        started = client.create_run_from_pipeline_func(
            pipeline, arguments=dict(arguments), namespace=namespace, service_account=service_account, enable_caching=False
        )
    except ApiException as error:
        if error.status and _is_momentary(int(error.status)):
            raise TryAgain(f"{host} answers {error.status} for the moment{_PERHAPS}; the same command tries again") from None
        raise InputError(f"{host} does not take the run: {error.status} {error.reason}: {_said(error)}"[:400]) from None
    except (HTTPError, OSError, ValueError) as error:
        raise _unanswered(error, host, may_have_started=True) from None
    return _page_of(started.run_id, host)


def _page_of(run: str | None, host: str) -> str:
    if not run:
        raise InputError(f"{host} has started no run: its answer names none. Is this the address of the API, or of a page before it?")
    return f"{host.rstrip('/')}/#/runs/details/{run}"


_TAKEN_OVER = ("experiment_id", "pipeline_spec", "pipeline_version_reference", "runtime_config", "service_account")
_ENDED = ("FAILED", "CANCELED")


def resume_run(run: str, *, host: str, access: Access) -> str:
    """Start a run that asks for what ``run`` asked for, if that has ended before it was done; return the address of its page.

    A run of its own, and not Kubeflow's retry of the old one: jobs are named by their run, and what ended for good in it would end again.
    Its stages find by key what is finished. Raises :class:`InputError` for a run that goes on, has succeeded or is not known.
    """
    answer = _answer(host, access, "GET", f"runs/{quote(run, safe='')}")
    known = _content_of(answer)
    if answer.status == 404 or known is None:
        raise InputError(f"{host} knows no run {run} ({answer.status}); the id is the last part of its page's address")
    if answer.status != 200:
        raise InputError(f"{host} does not show run {run}: {answer.status}, {_words_of(known)}")
    state = known.get("state")
    if state == "SUCCEEDED":
        raise InputError(f"run {run} has succeeded: nothing is left of it to take up")
    if state not in _ENDED:
        raise InputError(f"run {run} is {str(state).lower()}: wait for its end, or terminate it there, before another takes it up")
    asked = {name: known[name] for name in _TAKEN_OVER if known.get(name)}
    if not {"pipeline_spec", "pipeline_version_reference"} & asked.keys():
        raise InputError(f"{host} does not say any more what run {run} was to do; submit it anew (its finished stages are found by key)")
    body = {"display_name": f"{known.get('display_name', run)}, taken up", **asked}
    answer = _answer(host, access, "POST", "runs", body=body)
    started = _content_of(answer) or {}
    if answer.status != 200:
        raise InputError(f"{host} does not take the run: {answer.status}, {_words_of(started)}")
    return _page_of(started.get("run_id"), host)


def _words_of(content: Mapping[str, Any]) -> str:
    return str(content.get("error") or content.get("message") or "it does not say why")[:300]


def _said(error: Any) -> str:
    try:
        content = json.loads(error.body)
        return str(content.get("error") or content.get("message") or error.body)
    except (ValueError, TypeError, AttributeError):
        return ""


def require_exact(arguments: Mapping[str, Any], where: str = "") -> None:
    """Raises :class:`InputError` for a value that Kubeflow would change silently, by its key: large integers, and what Argo expands.

    The arguments of a run are an argument of a task of Argo's, which replaces ``{{workflow.name}}`` and the like, or refuses what it
    does not know (kubeflow/pipelines, backend/src/v2/compiler/argocompiler/dag.go; https://argo-workflows.readthedocs.io/en/latest/variables/).
    """
    for name, value in arguments.items():
        key = f"{where}.{name}" if where else str(name)
        if "{{" in str(name):
            raise InputError(f"{key}: Kubeflow's Argo expands '{{{{'; use another name")
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Mapping):
                require_exact(each, key)
            if isinstance(each, int) and not isinstance(each, bool) and abs(each) > LARGEST_INTEGER:
                raise InputError(f"{key} is {each}: Kubeflow carries integers up to 2^53 ({LARGEST_INTEGER}); use a smaller one")
            if isinstance(each, str) and "{{" in each:
                raise InputError(f"{key} is {each!r}: Kubeflow's Argo expands '{{{{'; use text without it")
