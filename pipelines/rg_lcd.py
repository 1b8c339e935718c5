"""The stage table as a Kubeflow pipeline: a task per stage, an edge per artifact, a dict parameter per section."""

import importlib
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl, kubernetes
from kfp.compiler import Compiler

from rglcd.config import SECTIONS, Config
from rglcd.errors import InputError
from rglcd.launch.resources import RESOURCES
from rglcd.stages.table import SOURCE, Profile, Stage, inputs_of, stages_of

NAME = "rg-lcd"
ACCELERATOR = "nvidia.com/gpu"
STORE = "/store"
"""Where a cluster's tasks find the volume that holds the artifacts' bytes."""
STORE_CLAIM = "rglcd-store"


class Placement(StrEnum):
    """Where the tasks will run: ``local`` tasks share this machine and its environment, ``cluster`` tasks are placed by profile."""

    LOCAL = "local"
    CLUSTER = "cluster"


def pipeline(config: Config, *, placement: Placement) -> Any:
    """The pipeline of the stages that ``config`` runs. Its arguments are :func:`arguments`."""

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
        evaluation: dict,
    ) -> None:
        given = locals()
        made: dict[str, Any] = {SOURCE: source}
        for stage in stages_of(config):
            task = _component(stage)(
                store=store,
                **{section: given[section] for section in stage.sections},
                **{artifact: made[artifact] for artifact in inputs_of(stage, config)},
            )
            made |= {output: task.outputs[output] for output in stage.outputs}
            task.set_display_name(stage.name)
            # A stage knows itself whether its work is done, by what its inputs hold; Kubeflow's cache cannot see that.
            task.set_caching_options(enable_caching=False)
            if placement is Placement.CLUSTER:
                _place(task, stage.profile)

    return rg_lcd


def arguments(config: Config, *, source: str, store: str) -> dict[str, Any]:
    """The pipeline's arguments: a section each as plain values, the source as ``uri@md5``, the folder of the artifacts.

    Kubeflow's dicts hold no null: those are left out, null being the default of every key that takes it.
    """
    sections = {name: config.section(name).model_dump(mode="json", exclude_none=True) for name in SECTIONS}
    return {"source": source, "store": store, **sections}


def compile_pipeline(config: Config, path: Path, *, source: str) -> None:
    """Write the pipeline for a cluster as IR YAML, ``config`` as its defaults."""
    defaults = arguments(config, source=source, store=STORE)
    Compiler().compile(pipeline(config, placement=Placement.CLUSTER), str(path), pipeline_parameters=defaults)


def source_reference(root: Path, *, uri: str | None = None) -> str:
    """``uri@md5``, the md5 as ``data.dvc`` names it; ``uri`` defaults to the folder that it tracks.

    Raises :class:`InputError` when there is no ``data.dvc`` that names one.
    """
    path = root / "data.dvc"
    if not path.is_file():
        raise InputError(f"{path} is missing; record the source folder with: dvc add data")
    try:
        (out,) = yaml.safe_load(path.read_text(encoding="utf-8"))["outs"]
        return f"{uri or (root / out['path']).resolve()}@{out['md5']}"
    except (yaml.YAMLError, TypeError, KeyError, ValueError):
        raise InputError(f"{path} names no single output with its md5; record the source folder again: dvc add data") from None


def _component(stage: Stage) -> Any:
    return getattr(importlib.import_module(f"components.{stage.name}"), stage.name)


def _place(task: dsl.PipelineTask, profile: Profile) -> None:
    """Ask for what ``profile`` needs: cores, memory, GPUs with a process each, shared memory, the store."""
    asked = RESOURCES[profile]
    task.set_cpu_limit(str(asked.cpus)).set_memory_limit(f"{asked.memory_gib}Gi")
    kubernetes.mount_pvc(task, pvc_name=STORE_CLAIM, mount_path=STORE)
    if asked.gpus == 0:
        return
    task.set_accelerator_type(ACCELERATOR).set_accelerator_limit(asked.gpus)
    kubernetes.add_toleration(task, key=ACCELERATOR, operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(task, volume_name="shared-memory", mount_path="/dev/shm", medium="Memory")  # noqa: S108 (the pod's own mount)
    if asked.gpus > 1:
        kubernetes.add_node_selector(task, label_key="nvidia.com/gpu.family", label_value="ampere")
        task.set_env_variable("RGLCD_RUNTIME", "torchx:local_cwd")
        task.set_env_variable("RGLCD_NUM_PROCESSES", str(asked.gpus))
