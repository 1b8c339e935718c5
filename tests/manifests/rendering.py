"""What ``kubectl kustomize`` makes of the manifests, as plain objects."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
APPLIED = ("local", "one-gpu", "a100", "a100+gke", "a100+eks", "a100+aks")
"""Overlays, with the components that somebody may put on top of them. All of their objects can be applied."""
BUILT = (*APPLIED, *(f"{name}+monitoring" for name in APPLIED))

Object = dict[str, Any]


def kustomization(name: str, folder: Path) -> Path:
    """Write into ``folder`` what a user writes to put ``overlay+component+...`` together; returns the folder for ``kubectl -k``."""
    overlay, *components = name.split("+")
    # kustomize takes relative paths only.
    up = Path(*([".."] * (len(folder.resolve().parts) - 1))) / MANIFESTS.relative_to("/")
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(up / "overlays" / overlay)],
        "components": [str(up / "components" / component) for component in components],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


def rendered(folder: Path) -> list[Object]:
    """The objects of a kustomization. Needs kubectl, no cluster."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[Object], kind: str) -> Iterator[Object]:
    return (item for item in objects if item["kind"] == kind)


def pod_templates(item: Object) -> Iterator[Object]:
    """Every pod that ``item`` describes: its own, its template's, or one for each task of a Volcano Job."""
    spec = item.get("spec", {})
    if item["kind"] == "Pod":
        yield item
    for template in (spec.get("template"), spec.get("jobTemplate", {}).get("spec", {}).get("template")):
        if template is not None:
            yield template
    for task in spec.get("tasks", []):
        yield task["template"]
