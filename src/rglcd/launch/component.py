"""A component file for TorchX's own command line: a stage as an app, without our launcher.

    torchx run src/rglcd/launch/component.py:stage --name distill --image IMAGE --nodes 2

cluster.yaml says where, as for ``rglcd launch``; queue, account and priority are TorchX's own options, in ``.torchxconfig``. The rest
of the pod is TorchX's pod overlay, the same for every replica, so the pods are those of ``rglcd launch`` but for two things: what an end
means (restart policies, further attempts) and how long the job's object is kept are a job's, which no overlay reaches. TorchX names
each submission anew, so submitting twice makes two jobs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchx import specs
from torchx.specs.overlays import JOIN, PUT, set_overlay

from rglcd.config import load_params
from rglcd.errors import InputError
from rglcd.launch.appdef import cluster_app
from rglcd.launch.boundary import process_boundary
from rglcd.launch.placement import job_name
from rglcd.launch.provenance import with_provenance
from rglcd.launch.released_image import warn_unless_published
from rglcd.launch.settings import load_settings, placement_of
from rglcd.launch.volcano_job import volcano_job
from rglcd.stages.table import SOURCE, inputs_of, stage_named, stages_of

_CLAIM, _MOUNT = "rglcd-store", "/store"

_OF_TORCHX = ("containers", "restartPolicy", "serviceAccountName", "schedulerName", "priorityClassName")
"""Fields of a pod's spec that TorchX fills in from its own options."""
_LISTS = ("volumes", "tolerations", "imagePullSecrets")
"""Lists that take the place of TorchX's instead of being appended to them."""
_OF_THE_CONTAINER = (
    *("resources", "volumeMounts", "securityContext", "ports", "envFrom"),
    *("terminationMessagePath", "terminationMessagePolicy"),
)


def stage(
    name: str,
    image: str,
    params: str = "params.yaml",
    run: str = "torchx",
    nodes: int = 0,
    store: str = "",
    claim: str = "",
) -> specs.AppDef:
    """One stage of the configuration in force, in a cluster.

    Args:
        name: the stage: shard, prepare, cache, pretrain, distill or evaluate
        image: what the pods run, by digest
        params: the configuration in force
        run: the run's id, in the pods' logs and labels
        nodes: nodes of distill (default: cluster.yaml's, or 1)
        store: where the pods find the artifacts, and the source in its folder data (default: cluster.yaml's, or /store)
        claim: the volume claim mounted there (default: cluster.yaml's, or rglcd-store)
    """
    with process_boundary():
        return _stage(name, image, params=Path(params), run=run, nodes=nodes, store=store, claim=claim)


def _stage(name: str, image: str, *, params: Path, run: str, nodes: int, store: str, claim: str) -> specs.AppDef:
    config = load_params(params)
    running = {row.name: row for row in stages_of(config)}
    if name not in running:
        raise InputError(f"{name!r} is no stage of {params}; its stages are: {', '.join(running)}")
    row = stage_named(name)
    mount, known_claim = load_settings().volume or (_MOUNT, _CLAIM)
    place = store or mount
    settings = load_settings(image=image, run=run, num_nodes=nodes or None, store_claim=f"{claim or known_claim}={place}")
    if settings.secrets:
        raise InputError(
            f"TorchX's overlay cannot hand on a key of a Secret ({settings.secrets[0]} of cluster.yaml): use rglcd launch, "
            "or put it into the Secret rglcd-store, whose keys are variables of every pod"
        )
    warn_unless_published(image)
    artifacts = {
        artifact: Path(place) / ("data" if artifact == SOURCE else artifact) for artifact in (*inputs_of(row, config), *row.outputs)
    }
    placement = placement_of(with_provenance(settings), stage=row, request=None)
    app = cluster_app(
        row, sections={section: config.section(section) for section in row.sections}, artifacts=artifacts, placement=placement
    )
    completed = volcano_job(app, stage=row, placement=placement)["spec"]["tasks"][0]["template"]
    (role,) = app.roles
    # TorchX names the job; what is kept of a failed attempt lies in a folder of that name.
    own = job_name(row, placement, attempt=1)
    (container,) = completed["spec"]["containers"]
    role.env |= {entry["name"]: _value(entry).replace(own, "${app_id}") for entry in container["env"] if _is_ours(entry)}
    set_overlay(role, "kubernetes", "V1Pod", _overlay(completed, container, image=role.image))
    return app


def _overlay(pod: Mapping[str, Any], container: Mapping[str, Any], *, image: str) -> dict[str, Any]:
    """What TorchX leaves out of a pod. Its one container has another name in each replica, and the same image in all."""
    of_container = {field: container[field] for field in _OF_THE_CONTAINER if field in container}
    spec = {PUT(field) if field in _LISTS else field: value for field, value in pod["spec"].items() if field not in _OF_TORCHX}
    labels = {key: value for key, value in pod["metadata"]["labels"].items() if not key.startswith(("app.kubernetes.io/", "torchx"))}
    return {"metadata": {"labels": labels}, "spec": {**spec, JOIN("containers", on="image"): [{"image": image, **of_container}]}}


def _is_ours(entry: Mapping[str, Any]) -> bool:
    """Whether a variable of the completed pod is not TorchX's own, which it adds by itself."""
    return not entry["name"].startswith("TORCHX_")


def _value(entry: Mapping[str, Any]) -> str:
    """A variable's value as TorchX takes it: words, or a field of the pod."""
    return str(entry["value"]) if "value" in entry else f"[FIELD_PATH]{entry['valueFrom']['fieldRef']['fieldPath']}"
