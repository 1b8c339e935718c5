"""A stage as a job in a cluster: submit it and stay with it, or print what would be submitted."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rglcd.config import Section
from rglcd.launch.placement import Placement
from rglcd.launch.settings import ClusterSettings, placement_of
from rglcd.stages.computation import Artifacts
from rglcd.stages.table import Stage, stage_named

if TYPE_CHECKING:
    from torchx import specs


def launch(
    stage_name: str,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    settings: ClusterSettings,
) -> None:
    """Run a stage as a job in a cluster and stay with it until it ends.

    The result is where ``artifacts`` says, as the pods see it; nothing of it is read here. The reason of a failure is kept beside
    it where that is a folder of this machine too. Raises as :func:`execute` does.
    """
    from rglcd.launch.cluster_client import cluster_client
    from rglcd.launch.kubernetes_job import run_kubernetes_job

    stage = stage_named(stage_name)
    app, placement = _cluster_app(stage, sections, artifacts, settings)
    output = Path(artifacts[stage.outputs[0]])
    failure_file = output.with_name(f"{output.name}.failure.json") if output.parent.is_dir() else None
    run_kubernetes_job(app, stage=stage, placement=placement, api=cluster_client(), failure_file=failure_file)


def job_manifest(
    stage_name: str,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    settings: ClusterSettings,
) -> dict[str, Any]:
    """The very object that :func:`launch` would submit first; no cluster is asked."""
    from rglcd.launch.volcano_job import volcano_job

    stage = stage_named(stage_name)
    app, placement = _cluster_app(stage, sections, artifacts, settings)
    return volcano_job(app, stage=stage, placement=placement)


def _cluster_app(
    stage: Stage,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    settings: ClusterSettings,
) -> tuple["specs.AppDef", Placement]:
    from rglcd.launch.appdef import cluster_app

    request = [_plain(sections), {name: str(at) for name, at in artifacts.items()}]
    placement = placement_of(settings, stage=stage, request=request)
    return cluster_app(stage, sections=sections, artifacts=artifacts, placement=placement), placement


def _plain(sections: Mapping[str, Mapping[str, Any] | Section]) -> dict[str, Any]:
    return {name: values.model_dump(mode="json") if isinstance(values, Section) else dict(values) for name, values in sections.items()}
