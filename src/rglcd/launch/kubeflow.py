"""What Kubeflow's components do: run their stage, and hand references to artifacts on."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rglcd import progress
from rglcd.errors import InputError
from rglcd.launch.artifact_reference import artifact_location, read_reference, source_folder, write_reference
from rglcd.launch.boundary import process_boundary
from rglcd.launch.execute import execute
from rglcd.launch.progress_display import drawing
from rglcd.launch.settings import exporting_store, load_settings
from rglcd.stages.table import SOURCE, stage_named


class KubeflowArtifact(Protocol):
    """What is used of a Kubeflow artifact: where its content lies, and what its card shows."""

    path: str
    metadata: dict[str, Any]


def execute_component(
    stage_name: str,
    *,
    sections: Mapping[str, Mapping[str, Any]],
    store: str,
    inputs: Mapping[str, KubeflowArtifact | None],
    outputs: Mapping[str, KubeflowArtifact],
    source: str | None = None,
    cards: Mapping[str, KubeflowArtifact] | None = None,
) -> None:
    """The body of every Kubeflow component: run the stage, and hand references on.

    Kubeflow's artifacts are small references; the bytes stay in ``<store>/<artifact>``. ``source`` is ``uri@md5``.
    ``cards`` maps files of the output folder to artifacts that Kubeflow's page shows.
    """
    with process_boundary(), exporting_store(load_settings()):
        (output,) = stage_named(stage_name).outputs
        artifacts: dict[str, Path | str] = {
            name: read_reference(Path(given.path), artifact=name) for name, given in inputs.items() if given is not None
        }
        artifacts[output] = artifact_location(store, output)
        if source is not None:
            artifacts[SOURCE] = source_folder(source)
        with drawing(sys.stderr) as draw, progress.reporting_to(draw):
            outcome = execute(stage_name, sections=sections, artifacts=artifacts)
        assert outcome is not None, "a Kubeflow task is one process, which publishes"
        written = outputs[output]
        # By the name that it was asked for: a folder that all tasks see, or else a store's, which is there for every machine.
        write_reference(Path(written.path), outcome.manifest, at=artifacts[output])
        written.metadata |= {"digest": outcome.manifest.digest, "uri": outcome.manifest.store or str(outcome.folder)}
        for name, card in (cards or {}).items():
            shutil.copyfile(outcome.folder / name, card.path)
            if name.endswith(".json"):
                card.metadata |= _figures(json.loads((outcome.folder / name).read_text(encoding="utf-8")))


def assist_component(stage_name: str, *, sections: Mapping[str, Mapping[str, Any]], source: str, store: str, part: int) -> None:
    """The body of a worker's component: make one part of the stage's work and publish nothing; the stage's own task does."""
    with process_boundary(), exporting_store(load_settings()):
        (output,) = stage_named(stage_name).outputs
        artifacts = {SOURCE: source_folder(source), output: artifact_location(store, output)}
        with drawing(sys.stderr) as draw, progress.reporting_to(draw):
            execute(stage_name, sections=sections, artifacts=artifacts, part=part)
        print(f"part {part} is made", flush=True)


def end_jobs_of_run() -> None:
    """Delete what jobs of the run that the settings name still go on; their pods save their state."""
    from rglcd.launch.cluster_api import end_jobs
    from rglcd.launch.cluster_client import cluster_client

    with process_boundary():
        settings = load_settings()
        if settings.run is None:
            raise InputError("RGLCD_RUN does not say which run's jobs are to end")
        for name in end_jobs(cluster_client(), run=settings.run, namespace=settings.namespace):
            print(f"{name} deleted", flush=True)


def _figures(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested mapping by dotted name: Kubeflow's metrics are flat."""
    flat: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _figures(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat
