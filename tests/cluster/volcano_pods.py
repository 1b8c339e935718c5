"""The pods that Volcano's job controller makes of a job, its plugins ``svc`` and ``env`` included (``volcano.py`` names the sources)."""

from collections.abc import Mapping
from typing import Any


def pod_of(job: Mapping[str, Any], task: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The ``index``-th pod of a task, as the controller makes it."""
    job_metadata, template = job["metadata"], task["template"]
    name = job_metadata["name"]
    metadata = template.get("metadata", {})
    marks = {
        "volcano.sh/task-spec": task["name"],
        "volcano.sh/job-name": name,
        "volcano.sh/job-version": str(job["status"]["version"]),
        "scheduling.k8s.io/group-name": name,
    }
    labels = {"volcano.sh/job-name": name, "volcano.sh/job-namespace": job_metadata["namespace"], "volcano.sh/task-spec": task["name"]}
    pod_name = f"{name}-{task['name']}-{index}"
    spec = {"schedulerName": job["spec"].get("schedulerName", "volcano"), **template["spec"]}
    if "svc" in job["spec"].get("plugins", {}):
        spec |= {"hostname": pod_name, "subdomain": name}
    if "priorityClassName" in job["spec"]:
        spec.setdefault("priorityClassName", job["spec"]["priorityClassName"])
    spec["containers"] = [_with_plugins(container, job, index) for container in spec["containers"]]
    spec["initContainers"] = [_with_plugins(container, job, index) for container in spec.get("initContainers", [])]
    return {
        "metadata": {
            "name": pod_name,
            "namespace": job_metadata["namespace"],
            "labels": {**metadata.get("labels", {}), **labels},
            "annotations": {**metadata.get("annotations", {}), **marks},
            "ownerReferences": [owner_of(job)],
        },
        "spec": spec,
    }


def _with_plugins(container: Mapping[str, Any], job: Mapping[str, Any], index: int) -> dict[str, Any]:
    variables: list[dict[str, Any]] = list(container.get("env", []))
    if "svc" in job["spec"].get("plugins", {}):
        for task in job["spec"]["tasks"]:
            key = task["name"].replace("-", "_").upper()
            for name in (f"VC_{key}_HOSTS", f"VC_{key}_NUM"):
                source = {"configMapKeyRef": {"name": f"{job['metadata']['name']}-svc", "key": name}}
                variables.append({"name": name, "valueFrom": source})
    if "env" in job["spec"].get("plugins", {}):
        variables += [{"name": name, "value": str(index)} for name in ("VK_TASK_INDEX", "VC_TASK_INDEX")]
    return {**container, "env": variables}


def owner_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """The reference by which what belongs to ``job`` is deleted with it."""
    metadata = job["metadata"]
    reference = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    return reference | {"controller": True, "blockOwnerDeletion": True}
