"""Whether the cluster has a Kubeflow Pipelines, for one user or for several, and whether its runs may go where they are to go.

All of it is read: the kinds that the API server knows (which everybody may ask for), the Pipelines' own word through the API server's
proxy of services (as Kubeflow's own clients go: kubeflow/pipelines, backend/src/common/client/api_server/util.go), the namespace's labels.
"""

import json
from collections.abc import Iterator
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from rglcd.errors import InputError
from rglcd.launch.cluster_client import TIMEOUTS, PatientClient
from rglcd.launch.finding import Finding

OWN_NAMESPACE = "kubeflow"
_HEALTH = f"/api/v1/namespaces/{OWN_NAMESPACE}/services/ml-pipeline:8888/proxy/apis/v2beta1/healthz"
"""``multi_user`` in its answer: kubeflow/pipelines, backend/src/apiserver/main.go."""

_PIPELINES, _PROFILES = "scheduledworkflows", "profiles"
"""Kinds of the group kubeflow.org that every Kubeflow Pipelines brings, and every Kubeflow for several users."""

_PROFILE_LABEL = ("app.kubernetes.io/part-of", "kubeflow-profile")
"""What the controller of Profiles puts on their namespaces: kubeflow/kubeflow, profile-controller/controllers/profile_controller.go."""


def kubeflow(api: PatientClient, namespace: str) -> Iterator[Finding]:
    """Nothing of it is a fault: `rglcd launch` needs no Kubeflow, `python -m pipelines submit` does."""
    try:
        kinds = _kinds(api)
    except (ApiException, InputError) as error:
        yield Finding("Kubeflow", None, f"the kinds of kubeflow.org are not shown: {' '.join(str(error).split())[:200]}")
        return
    if _PIPELINES not in kinds:
        yield Finding("no Kubeflow Pipelines, which `python -m pipelines submit` alone needs", True)
        return
    is_multi_user, how = _multi_user(api), "by its own word"
    if is_multi_user is None:
        is_multi_user, how = _PROFILES in kinds, f"as it has {'' if _PROFILES in kinds else 'no '}Profiles; its own word was not to be had"
    yield _for_several(api, namespace, how) if is_multi_user else _for_one(namespace, how)


def _for_one(namespace: str, how: str) -> Finding:
    what = f"Kubeflow Pipelines for one user ({how}), which starts every run in its own namespace"
    if namespace == OWN_NAMESPACE:
        return Finding(what, True)
    return Finding(
        what,
        None,
        f"not in {namespace}: for `submit`, apply manifests/ to {OWN_NAMESPACE} and say --namespace {OWN_NAMESPACE} (docs/operations.md)",
        is_note=True,
    )


def _for_several(api: PatientClient, namespace: str, how: str) -> Finding:
    what = f"Kubeflow Pipelines for several users ({how})"
    key, value = _PROFILE_LABEL
    try:
        labels = client.CoreV1Api(api).read_namespace(namespace).metadata.labels or {}
    except (ApiException, InputError):
        return Finding(what, None, f"you may not read namespace {namespace}: for `submit` it must be a Profile's (label {key}={value})")
    if labels.get(key) == value:
        return Finding(f"{what}, with {namespace} a Profile's", True)
    advice = (
        f"{namespace} is no Profile's, so `submit` may not start runs there: make a Profile of that name, to an owner whom the namespace, "
        "if it is there already, names in its annotation owner"
    )
    return Finding(what, None, advice, is_note=True)


def _kinds(api: PatientClient) -> set[str]:
    """The resources of all versions of the group kubeflow.org; none where nobody has brought it."""
    try:
        group = _got(api, "/apis/kubeflow.org")
    except ApiException as error:
        if error.status == 404:
            return set()
        raise
    versions = [version["groupVersion"] for version in group.get("versions", ())]
    return {resource["name"] for version in versions for resource in _got(api, f"/apis/{version}").get("resources", ())}


def _got(api: PatientClient, path: str) -> dict[str, Any]:
    found: dict[str, Any] = api.call_api(
        path,
        "GET",
        header_params={"Accept": "application/json"},
        auth_settings=["BearerToken"],
        response_type="object",
        _return_http_data_only=True,
    )
    return found


def _multi_user(api: PatientClient) -> bool | None:
    """The Pipelines' own word, asked for once: a proxy that may not reach them answers 503 for good. ``None`` where it is not to be had."""
    try:
        answer = api.call_api(
            _HEALTH,
            "GET",
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=TIMEOUTS,
        )
        said = json.loads(answer.data)
    except (ApiException, HTTPError, OSError, ValueError):
        return None
    found = said.get("multi_user") if isinstance(said, dict) else None
    return found if isinstance(found, bool) else None
