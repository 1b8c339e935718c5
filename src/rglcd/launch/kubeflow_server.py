"""A Kubeflow Pipelines server: who we are to it, whether it is one, and a run that it really has started."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rglcd.errors import InputError, TryAgain

SECONDS = 30.0
_TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105 (a place, not a token)
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
    import urllib3

    pool = urllib3.PoolManager(retries=False, timeout=SECONDS, ca_certs=access.authorities)
    try:
        answer = pool.request("GET", f"{host.rstrip('/')}/apis/v2beta1/healthz", headers=access.headers, redirect=False)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise InputError(f"{host} does not take the run: {' '.join(str(error).split())[:300]}") from None
    if answer.status in (301, 302, 303, 307, 308) or "html" in answer.headers.get("Content-Type", ""):
        to = answer.headers.get("Location")
        raise InputError(f"{host} answers with a login page{f' ({to[:100]})' if to else ''}: {_WAYS_IN}")
    if answer.status in (401, 403):
        raise InputError(f"{host} does not let us in ({answer.status}): {_WAYS_IN}")
    if answer.status in (408, 429) or answer.status >= 500:
        raise TryAgain(f"{host} answers {answer.status} for the moment; the same command tries again")
    try:
        health = json.loads(answer.data)
    except ValueError:
        health = None
    if answer.status != 200 or not isinstance(health, dict):
        raise InputError(f"{host} is no Kubeflow Pipelines API of version 2: /apis/v2beta1/healthz answers {answer.status}")
    return health


def start_run(pipeline: Any, arguments: Mapping[str, Any], *, host: str, access: Access, namespace: str, service_account: str) -> str:
    """Start a run of ``pipeline``; return the address of its page. Raises :class:`InputError` if the server has not started one."""
    from kfp.client import Client
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        client = Client(host=host, namespace=namespace, existing_token=access.token, cookies=access.cookies, ssl_ca_cert=access.authorities)
        started = client.create_run_from_pipeline_func(
            pipeline, arguments=dict(arguments), namespace=namespace, service_account=service_account, enable_caching=False
        )
    except ApiException as error:
        raise InputError(f"{host} does not take the run: {error.status} {error.reason}: {_said(error)}"[:400]) from None
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(f"{host} does not take the run: {' '.join(str(error).split())[:300]}") from None
    if not started.run_id:
        raise InputError(f"{host} has started no run: its answer names none. Is this the address of the API, or of a page before it?")
    return f"{host.rstrip('/')}/#/runs/details/{started.run_id}"


def _said(error: Any) -> str:
    try:
        content = json.loads(error.body)
        return str(content.get("error") or content.get("message") or error.body)
    except (ValueError, TypeError, AttributeError):
        return ""


def require_exact(arguments: Mapping[str, Any], where: str = "") -> None:
    """Raises :class:`InputError` for an integer that Kubeflow would change silently, by its key."""
    for name, value in arguments.items():
        key = f"{where}.{name}" if where else str(name)
        if isinstance(value, Mapping):
            require_exact(value, key)
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, int) and not isinstance(each, bool) and abs(each) > LARGEST_INTEGER:
                raise InputError(f"{key} is {each}: Kubeflow carries integers up to 2^53 ({LARGEST_INTEGER}); use a smaller one")
