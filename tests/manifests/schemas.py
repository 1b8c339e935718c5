"""Strict schemas: Kubernetes 1.32's for its own kinds, the custom resource definitions' for the rest."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.manifests.rendering import Object

KUBERNETES = "1.32"
DEFINITIONS = (Path(__file__).parents[1] / "cluster" / "crds", Path(__file__).parent / "crds")


def check(item: Object) -> None:
    """Raises ``AssertionError`` unless a schema knows ``item``'s kind and every field of it."""
    kind = f"{item['apiVersion']}/{item['kind']}"
    try:
        if kind in _custom():
            jsonschema.validate(item, _custom()[kind])
        else:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        path = ".".join(str(part) for part in error.path)
        raise AssertionError(f"{kind} {item['metadata']['name']}: {path}: {error.message}") from None
    except kubernetes_validate.SchemaNotFoundError:
        raise AssertionError(f"{kind}: neither Kubernetes {KUBERNETES} nor a definition in {DEFINITIONS} knows this kind") from None


@cache
def _custom() -> dict[str, dict[str, Any]]:
    """The schema of every version of every definition, by ``apiVersion/kind``."""
    schemas = {}
    for path in (path for folder in DEFINITIONS for path in sorted(folder.glob("*.yaml"))):
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            schema = _strict(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
            schema["properties"]["metadata"] = {"type": "object"}
            schemas[f"{spec['group']}/{version['name']}/{spec['names']['kind']}"] = schema
    return schemas


def _strict(schema: Any) -> Any:
    """What the API server does to unknown fields in strict mode: objects take the properties they name, and no others."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(strict.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    return strict
