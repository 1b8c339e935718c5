"""The API server's plain JSON: what the stand-ins read and write."""

import json
from collections.abc import Mapping
from typing import Any

from kubernetes.client import ApiClient
from kubernetes.client.rest import ApiException

MERGE = "application/merge-patch+json"


class Rest:
    """GET, POST, PATCH, PUT and DELETE by path; a missing object is ``None``, any other refusal an ``ApiException``."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def get(self, path: str, **query: str) -> Any:
        return self._call("GET", path, query=query)

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        return (self.get(path, **query) or {"items": []})["items"]

    def create(self, path: str, body: Mapping[str, Any]) -> Any:
        """The object made, or ``None`` when one of that name is there."""
        try:
            return self._call("POST", path, body=body)
        except ApiException as error:
            if error.status == 409:
                return None
            raise

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("PATCH", path, body=body, content_type=MERGE)

    def replace(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("PUT", path, body=body)

    def delete(self, path: str, **options: Any) -> Any:
        return self._call("DELETE", path, body={"kind": "DeleteOptions", "apiVersion": "v1", **options})

    def _call(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None, content_type: str = "application/json"
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            response, _, _ = self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return json.loads(response.data)
