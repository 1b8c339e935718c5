"""A component file for TorchX's own command line: a stage as an app, without our launcher.

    torchx run src/rglcd/launch/component.py:stage --name distill --image IMAGE --nodes 2

``.torchxconfig`` holds namespace, queue and accounts. Tolerations, affinity, the pod's security context and its grace period are TorchX's
pod overlay; the minimum number of pods, restart policies, the container's security context and the limit of ``/dev/shm`` are beyond what an
overlay can say for several replicas: ``rglcd launch`` has those. TorchX names each submission anew, so submitting twice makes two jobs.
"""

from pathlib import Path

from torchx import specs
from torchx.specs.overlays import set_overlay

from rglcd.config import load_params
from rglcd.errors import InputError
from rglcd.launch.appdef import cluster_app
from rglcd.launch.placement import Placement
from rglcd.launch.resources import RESOURCES
from rglcd.launch.volcano_job import volcano_job
from rglcd.stages.table import SOURCE, inputs_of, stage_named, stages_of

_OVERLAID = ("tolerations", "affinity", "securityContext", "automountServiceAccountToken", "terminationGracePeriodSeconds")


def stage(
    name: str,
    image: str,
    params: str = "params.yaml",
    run: str = "torchx",
    nodes: int = 1,
    store: str = "/store",
    claim: str = "rglcd-store",
) -> specs.AppDef:
    """One stage of the configuration in force, in a cluster.

    Args:
        name: the stage: shard, prepare, cache, pretrain, distill or evaluate
        image: what the pods run, by digest
        params: the configuration in force
        run: the run's id, in the pods' logs and labels
        nodes: nodes of distill
        store: where the pods find the artifacts, and the source in its folder data
        claim: the volume claim mounted there
    """
    config = load_params(Path(params))
    running = {row.name: row for row in stages_of(config)}
    if name not in running:
        raise InputError(f"{name!r} is no stage of {params}; its stages are: {', '.join(running)}")
    row = stage_named(name)
    placement = Placement(run=run, image=image, num_nodes=nodes, processes_per_node=max(1, RESOURCES[row.profile].gpus))
    artifacts = {
        artifact: Path(store) / ("data" if artifact == SOURCE else artifact) for artifact in (*inputs_of(row, config), *row.outputs)
    }
    app = cluster_app(
        row, sections={section: config.section(section) for section in row.sections}, artifacts=artifacts, placement=placement
    )
    completed = volcano_job(app, stage=row, placement=placement)["spec"]["tasks"][0]["template"]
    (role,) = app.roles
    role.mounts = [specs.VolumeMount(src=claim, dst_path=store)]
    role.env |= {entry["name"]: entry["value"] for entry in completed["spec"]["containers"][0]["env"] if _is_ours(entry, role)}
    role.env |= {"RGLCD_POD_IP": "[FIELD_PATH]status.podIP"}
    spec = {field: completed["spec"][field] for field in _OVERLAID if field in completed["spec"]}
    labels = {key: value for key, value in completed["metadata"]["labels"].items() if key.startswith("rg-lcd/")}
    set_overlay(role, "kubernetes", "V1Pod", {"metadata": {"labels": labels}, "spec": spec})
    return app


def _is_ours(entry: dict[str, str], role: specs.Role) -> bool:
    """Whether a variable of the completed pod is neither TorchX's own nor the role's already."""
    return "value" in entry and not entry["name"].startswith("TORCHX_") and entry["name"] not in role.env
