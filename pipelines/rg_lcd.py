"""The stage table as a Kubeflow pipeline: a task per stage, an edge per artifact, a dict parameter per section."""

import importlib
from pathlib import Path
from typing import Any

from kfp import dsl, kubernetes
from kfp.compiler import Compiler

from components import TRAIN_IMAGE
from components.end_jobs import end_jobs
from components.shard_part import shard_part
from rglcd.config import SECTIONS, Config
from rglcd.launch.dvc_file import source_md5, source_place
from rglcd.launch.kubeflow_server import require_exact
from rglcd.launch.kubeflow_task import keep_from_autoscalers, place
from rglcd.launch.placement import IDENTITY
from rglcd.launch.resources import resources_of
from rglcd.launch.settings import ClusterSettings
from rglcd.stages.table import SOURCE, Profile, Stage, inputs_of, stages_of

NAME = "rg-lcd"
STORE = "/store"
"""Where a cluster's tasks find the volume that holds the artifacts' bytes."""
STORE_CLAIM = "rglcd-store"
USER = 10001
"""The images' user."""
CPU_SECONDS = 2 * 24 * 3600
LAUNCH_SECONDS = 8 * 24 * 3600
"""Longer than a job may wait and work (:class:`rglcd.launch.placement.Placement`): the job's own deadlines say more when they end it."""
END_SECONDS = 900

OWN_FIELDS = {
    "RGLCD_RUN": "metadata.labels['pipeline/runid']",
    "RGLCD_NAMESPACE": "metadata.namespace",
    "RGLCD_LAUNCHER_NAME": "metadata.name",
    "RGLCD_LAUNCHER_UID": "metadata.uid",
}
"""What a task that launches jobs knows of itself: variable, and field of its pod."""

_HANDED_ON = ClusterSettings.model_fields.keys() - {
    *("runtime", "earlier_attempts", "run", "namespace", "launcher_name", "launcher_uid"),  # each task's own
    *("image", "store_claim"),  # have defaults of the pipeline's
    *("store", "cache_gib"),  # go to every task
    "task_retries",  # is Kubeflow's
    "hand_on",  # what the launching process of the pipeline has: variables and secrets are the tasks'
    "cache",  # a folder of this machine
}
"""Settings that become variables of the tasks that launch jobs."""


def pipeline(config: Config, *, cluster: ClusterSettings | None) -> Any:
    """The pipeline of the stages that ``config`` runs. Its arguments are :func:`arguments`.

    For a cluster its tasks are configured by profile, and what its settings say beside the defaults becomes variables of the tasks
    that launch jobs: nobody reads cluster.yaml there. Without one (``None``) they share this machine and its environment.
    """

    @dsl.pipeline(name=NAME, description="Reward guided latent consistency distillation: from a source index to a report")
    def rg_lcd(
        source: str,
        store: str,
        sharding: dict,
        model: dict,
        preparation: dict,
        caching: dict,
        pretraining: dict,
        reward: dict,
        distillation: dict,
        monitoring: dict,
        evaluation: dict,
    ) -> None:
        given = locals()
        if cluster is None:
            _walk(config, given, cluster=None)
            return
        last = end_jobs()
        last.set_display_name("end jobs").set_caching_options(enable_caching=False)
        _ask(last, cpu="500m", memory="1Gi", seconds=END_SECONDS, retries=cluster.task_retries)
        _launches(last, cluster)
        place(last, cluster)
        with dsl.ExitHandler(last, name="stages"):
            _walk(config, given, cluster=cluster)

    return rg_lcd


def arguments(config: Config, *, source: str, store: str) -> dict[str, Any]:
    """The pipeline's arguments: a section each as plain values, the source as ``uri@md5``, the folder of the artifacts.

    Kubeflow's dicts hold no null: those are left out, null being the default of every key that takes it.
    Raises :class:`InputError` for a value that they would change.
    """
    sections = {name: config.section(name).model_dump(mode="json", exclude_none=True) for name in SECTIONS}
    given = {"source": source, "store": store, **sections}
    require_exact(given)
    return given


def compile_pipeline(config: Config, path: Path, *, source: str, store: str = STORE, cluster: ClusterSettings) -> None:
    """Write the pipeline for a cluster as IR YAML, ``config`` as its defaults; ``store`` is the folder of the claim, or a URL."""
    defaults = arguments(config, source=source, store=store)
    Compiler().compile(pipeline(config, cluster=cluster), str(path), pipeline_parameters=defaults)


def source_reference(root: Path, *, uri: str | None = None) -> str:
    """``uri@md5``, the md5 as ``data.dvc`` names it; ``uri`` defaults to the folder that it tracks.

    A source that it imports from an object store is there for every pod: its own address is the ``uri``.

    Raises :class:`InputError` when there is no ``data.dvc`` that names one.
    """
    md5, location = source_md5(root), source_place(root)
    if not isinstance(location, Path):
        return f"{location}@{md5}"
    return f"{uri or location.resolve()}@{md5}"


def _component(stage: Stage) -> Any:
    return getattr(importlib.import_module(f"components.{stage.name}"), stage.name)


def _walk(config: Config, given: dict[str, Any], *, cluster: ClusterSettings | None) -> None:
    """A task for each stage that ``config`` runs."""
    made: dict[str, Any] = {SOURCE: given[SOURCE]}
    for stage in stages_of(config):
        workers = _share_out(stage, config, given, cluster=cluster)
        task = _component(stage)(
            store=given["store"],
            **{section: given[section] for section in stage.sections},
            **{artifact: made[artifact] for artifact in inputs_of(stage, config)},
        )
        task.after(*workers)
        made |= {output: task.outputs[output] for output in stage.outputs}
        task.set_display_name(stage.name)
        # A stage knows itself whether its work is done, by what its inputs hold; Kubeflow's cache cannot see that.
        task.set_caching_options(enable_caching=False)
        if cluster is not None:
            _configure(task, stage.profile, cluster)


def _share_out(stage: Stage, config: Config, given: dict[str, Any], *, cluster: ClusterSettings | None) -> list[dsl.PipelineTask]:
    """Workers that do the stage's work side by side before its own task publishes it, where a cluster runs it in parts.

    A stage with GPUs is shared out by its job instead, among the ranks.
    """
    parts = _parts(stage, config)
    if cluster is None or parts == 1 or stage.profile is not Profile.CPU:
        return []
    sections = {section: given[section] for section in stage.sections}
    with dsl.ParallelFor(items=list(range(parts)), parallelism=parts) as part:
        worker = shard_part(store=given["store"], source=given[SOURCE], part=part, **sections)
        worker.set_display_name(f"{stage.name} worker").set_caching_options(enable_caching=False)
        _configure(worker, stage.profile, cluster)
    return [worker]


def _parts(stage: Stage, config: Config) -> int:
    """How many workers the configuration wants for the stage."""
    if stage.parts is None:
        return 1
    section, _, key = stage.parts.partition(".")
    return int(getattr(config.section(section), key))


def _configure(task: dsl.PipelineTask, profile: Profile, cluster: ClusterSettings) -> None:
    """Ask for what a task needs: a stage without GPUs runs in it, any other is launched from it as a job and waited for."""
    asked = resources_of(profile, cluster.pool)
    path, claim = cluster.volume or (STORE, STORE_CLAIM)
    if profile is not Profile.CPU:
        _ask(task, cpu="500m", memory="2Gi", seconds=_launch_seconds(cluster), retries=cluster.task_retries)
        _launches(task, cluster)
        task.set_env_variable("RGLCD_STORE_CLAIM", f"{claim}={path}")
        task.set_env_variable("RGLCD_IMAGE", cluster.image or TRAIN_IMAGE)
    else:
        _ask(task, cpu=str(asked.cpus), memory=f"{asked.memory_gib}Gi", seconds=CPU_SECONDS, retries=cluster.task_retries)
        kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path="/tmp", size_limit=f"{asked.disk_gib}Gi")  # noqa: S108
    kubernetes.mount_pvc(task, pvc_name=claim, mount_path=path)
    # For artifacts in an object store: what is read of them and unfinished work stay on the claim, keys come from a Secret if there is one.
    task.set_env_variable("RGLCD_CACHE", f"{path}/.cache")
    for variable, value in cluster.as_variables("store", "cache_gib").items():
        task.set_env_variable(variable, value)
    place(task, cluster)


def _launch_seconds(cluster: ClusterSettings) -> int:
    return max(LAUNCH_SECONDS, cluster.queue_seconds + cluster.run_seconds + 3600)


def _ask(task: dsl.PipelineTask, *, cpu: str, memory: str, seconds: int, retries: int) -> None:
    """Resources, an end, another try: what every task has in common."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(num_retries=retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_timeout(task, seconds=seconds)
    for label, value in IDENTITY.items():
        kubernetes.add_pod_label(task, label, value)


def _launches(task: dsl.PipelineTask, cluster: ClusterSettings) -> None:
    """Give a task that launches jobs the settings of the cluster, and what it is itself: the run names the jobs, the pod owns them."""
    for variable, value in cluster.as_variables(*_HANDED_ON).items():
        task.set_env_variable(variable, value)
    keep_from_autoscalers(task)
    task.set_env_variable("RGLCD_RUNTIME", "torchx:kubernetes")
    # Kubeflow starts a failed task again: what must not be tried again is then not tried again.
    task.set_env_variable("RGLCD_EARLIER_ATTEMPTS", "counted")
    for variable, path in OWN_FIELDS.items():
        kubernetes.use_field_path_as_env(task, env_name=variable, field_path=path)
