"""Run a stage where the environment says. Here, and in ``store/files.py`` alone, the environment is read.

``RGLCD_RUNTIME``        ``inline`` (default): in this process; ``torchx:local_cwd`` and ``torchx:kubernetes``: stages with a GPU
                         profile as TorchX apps, on this machine or in a cluster
``RGLCD_NUM_PROCESSES``  processes of such an app on each node (default: on this machine 2 for ``gpu-gang``, otherwise 1; in a
                         cluster one for each GPU)
``RGLCD_PREFLIGHT``      what the machine was promised to be (:mod:`rglcd.launch.preflight`), checked before the stage begins
``RGLCD_PATIENCE``       seconds after which a rank whose peers do not answer gives them up (default: torch's own)
``RGLCD_PROGRESS``       file that receives progress as JSON lines, for whoever started this process
``TORCHELASTIC_ERROR_FILE``  file that receives the reason of a failure (see :mod:`rglcd.launch.failure`)

Where in a cluster: see :func:`rglcd.launch.placement.placement_from`.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rglcd import progress
from rglcd.config import Section
from rglcd.errors import InputError
from rglcd.launch.console import drawing, following
from rglcd.launch.failure import KNOWN, LINE, Failure, JobError, read_failure, write_failure
from rglcd.launch.placement import NUM_PROCESSES, PATIENCE, Placement, placement_from, whole_number
from rglcd.launch.reference import read_reference, source_folder, write_reference
from rglcd.stages.run import Artifacts, Outcome, assist_stage, run_part, run_stage, standing_outcome
from rglcd.stages.table import SOURCE, Profile, Stage, stage_named
from rglcd.store.artifacts import Place
from rglcd.store.files import is_remote

if TYPE_CHECKING:
    from torchx import specs

RUNTIME = "RGLCD_RUNTIME"
PROGRESS = "RGLCD_PROGRESS"
PREFLIGHT = "RGLCD_PREFLIGHT"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


class Runtime(StrEnum):
    """Where stages with a GPU profile run; those without run in the process that asks."""

    INLINE = "inline"
    LOCAL = "torchx:local_cwd"
    KUBERNETES = "torchx:kubernetes"


def execute(
    stage_name: str,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    part: int | None = None,
) -> Outcome | None:
    """Run a stage where the environment says; arguments and errors are those of :func:`rglcd.stages.run.run_stage`.

    ``part`` is the number of the one part to make of those that the configuration divides the stage into; it runs here.
    ``None`` for a part, and on every rank of a process group but the first, which alone publishes. Also raises
    :class:`~rglcd.launch.failure.JobError` when a job ends with an exit code of its own.
    """
    if part is not None:
        with _reporting_to_file():
            run_part(stage_name, sections, artifacts, index=part)
        return None
    stage = stage_named(stage_name)
    runtime = _runtime()
    if runtime is not Runtime.INLINE and stage.profile is not Profile.CPU:
        here = partial(_run_here, num_processes=_num_processes(stage))
        return _execute_as_job(stage, sections, artifacts, run_job=here if runtime is Runtime.LOCAL else launch)
    with _reporting_to_file(), _patience():
        if PREFLIGHT in os.environ:
            _check_machine(Place.of(stage.outputs[0], artifacts[stage.outputs[0]]))
        if _leads():
            return run_stage(stage_name, sections, artifacts)
        assist_stage(stage_name, sections, artifacts)
        return None


@contextmanager
def process_boundary() -> Iterator[None]:
    """Around a ``main``: an error that the house knows becomes one line on stderr, the error file, and its exit code."""
    try:
        yield
    except (*KNOWN, JobError) as error:
        failure = Failure(" ".join(str(error).split()), error.exit_code)
        error_file = os.environ.get(ERROR_FILE)
        if error_file:
            write_failure(Path(error_file), failure)
        if "RANK" not in os.environ:  # a rank's launcher says it, once for all ranks
            print(LINE.format(message=failure.message), file=sys.stderr, flush=True)
        raise SystemExit(failure.exit_code) from None


# --- Kubeflow ------------------------------------------------------------------------------------


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
    with process_boundary():
        (output,) = stage_named(stage_name).outputs
        artifacts: dict[str, Path | str] = {
            name: read_reference(Path(given.path), artifact=name) for name, given in inputs.items() if given is not None
        }
        artifacts[output] = place_in(store, output)
        if source is not None:
            artifacts[SOURCE] = source_folder(source)
        with drawing(sys.stderr) as draw, progress.reporting_to(draw):
            outcome = execute(stage_name, sections=sections, artifacts=artifacts)
        assert outcome is not None, "a Kubeflow task leads its process group"
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
    with process_boundary():
        (output,) = stage_named(stage_name).outputs
        artifacts = {SOURCE: source_folder(source), output: place_in(store, output)}
        with drawing(sys.stderr) as draw, progress.reporting_to(draw):
            execute(stage_name, sections=sections, artifacts=artifacts, part=part)
        print(f"part {part} is made", flush=True)


def place_in(store: str, artifact: str) -> Path | str:
    """Where ``artifact`` lies in ``store``, a folder or a URL."""
    return f"{store.rstrip('/')}/{artifact}" if is_remote(store) else Path(store) / artifact


def _figures(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested mapping by dotted name: Kubeflow's metrics are flat."""
    flat: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _figures(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat


# --- a job of its own ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Channel:
    """Files through which processes started from here report."""

    progress: Path
    error: Path

    def failure(self) -> Failure | None:
        """What the process that failed said of it, if it said anything."""
        return read_failure(self.error.read_text(encoding="utf-8")) if self.error.is_file() else None


@contextmanager
def children_reporting() -> Iterator[Channel]:
    """Within this context, processes started from here report progress and failure to the files of the channel."""
    with tempfile.TemporaryDirectory(prefix="rglcd-channel-") as folder:
        channel = Channel(Path(folder) / "progress.jsonl", Path(folder) / "error.json")
        with _environment({PROGRESS: str(channel.progress), ERROR_FILE: str(channel.error)}):
            yield channel


def _execute_as_job(
    stage: Stage, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts, *, run_job: "_RunJob"
) -> Outcome:
    # Asked here too: eight GPUs are not waited for to find out that there is nothing to do.
    standing = standing_outcome(stage.name, sections, artifacts)
    if standing is not None:
        return standing
    started = time.perf_counter()
    with _job_progress():
        run_job(stage.name, sections=sections, artifacts=artifacts)
    made = standing_outcome(stage.name, sections, artifacts)
    if made is None:
        raise JobError(f"the job of {stage.name} ended well, and {artifacts[stage.outputs[0]]} does not hold its result here", exit_code=1)
    return replace(made, was_done=False, seconds=time.perf_counter() - started)


class _RunJob(Protocol):
    """Runs a stage as a job to its end, elsewhere."""

    def __call__(self, stage_name: str, *, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> None: ...


def _run_here(stage_name: str, *, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts, num_processes: int) -> None:
    # Here, not above: TorchX takes a second to import, and most processes never submit anything.
    from rglcd.launch.appdef import stage_app
    from rglcd.launch.local_job import run_local_job

    stage, image = stage_named(stage_name), str(Path.cwd())
    run_local_job(stage_app(stage, sections=sections, artifacts=artifacts, image=image, num_processes=num_processes, python=sys.executable))


def launch(
    stage_name: str,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Run a stage as a job in a cluster and stay with it until it ends; ``variables`` go before the environment's.

    The result is where ``artifacts`` says, as the pods see it; nothing of it is read here. The reason of a failure is kept beside
    it where that is a folder of this machine too. Raises as :func:`execute` does.
    """
    from rglcd.launch.kubernetes_job import cluster_client, run_kubernetes_job

    stage = stage_named(stage_name)
    app, placement = _cluster_app(stage, sections, artifacts, variables or {})
    output = Path(artifacts[stage.outputs[0]])
    failure_file = output.with_name(f"{output.name}.failure.json") if output.parent.is_dir() else None
    run_kubernetes_job(app, stage=stage, placement=placement, api=cluster_client(), failure_file=failure_file)


def end_jobs_of_run() -> None:
    """Delete what jobs of the run that the environment names still go on; their pods save their state."""
    from rglcd.launch.kubernetes_job import cluster_client, end_jobs

    with process_boundary():
        run = os.environ.get("RGLCD_RUN")
        if not run:
            raise InputError("RGLCD_RUN does not say which run's jobs are to end")
        for name in end_jobs(cluster_client(), run=run, namespace=os.environ.get("RGLCD_NAMESPACE", Placement.namespace)):
            print(f"{name} deleted", flush=True)


def job_manifest(
    stage_name: str,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The very object that :func:`launch` would submit first; no cluster is asked."""
    from rglcd.launch.volcano_job import volcano_job

    stage = stage_named(stage_name)
    app, placement = _cluster_app(stage, sections, artifacts, variables or {})
    return volcano_job(app, stage=stage, placement=placement)


def _cluster_app(
    stage: Stage,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    variables: Mapping[str, str],
) -> tuple["specs.AppDef", Placement]:
    from rglcd.launch.appdef import cluster_app

    request = [_plain(sections), {name: str(at) for name, at in artifacts.items()}]
    placement = placement_from({**os.environ, **variables}, stage=stage, request=request)
    return cluster_app(stage, sections=sections, artifacts=artifacts, placement=placement), placement


def _check_machine(output: Place) -> None:
    from rglcd.launch.preflight import preflight

    found = preflight(os.environ[PREFLIGHT], output=output)
    if _leads():
        print("preflight: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), file=sys.stderr, flush=True)


def _runtime() -> Runtime:
    word = os.environ.get(RUNTIME, Runtime.INLINE)
    if word not in list(Runtime):
        raise InputError(f"{RUNTIME} is {word!r}; it is one of: {', '.join(Runtime)}")
    return Runtime(word)


def _num_processes(stage: Stage) -> int:
    return whole_number(os.environ, NUM_PROCESSES, default=2 if stage.profile is Profile.GPU_GANG else 1)


def _plain(sections: Mapping[str, Mapping[str, Any] | Section]) -> dict[str, Any]:
    return {name: values.model_dump(mode="json") if isinstance(values, Section) else dict(values) for name, values in sections.items()}


def _leads() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _reporting_to_file() -> Iterator[None]:
    """Report to the file that the environment names; of a process group, rank 0 speaks for all."""
    path = os.environ.get(PROGRESS)
    if path is None:
        yield
        return
    with progress.reporting_to(progress.json_lines_sink(Path(path)) if _leads() else _unheard):
        yield


@contextmanager
def _patience() -> Iterator[None]:
    """How long the ranks of this process's group wait for one another, if the environment says it."""
    if PATIENCE not in os.environ:
        yield
        return
    from rglcd.training.distributed import waiting_at_most  # torch, which not every stage needs

    with waiting_at_most(whole_number(os.environ, PATIENCE)):
        yield


@contextmanager
def _job_progress() -> Iterator[None]:
    """Bring a job's progress to whoever listens here, unless the environment names a file: the job inherits that."""
    if PROGRESS in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="rglcd-progress-") as folder:
        path = Path(folder) / "progress.jsonl"
        with _environment({PROGRESS: str(path)}), following(path, _forward):
            yield


def _unheard(event: progress.Event) -> None:
    pass


def _forward(event: progress.Event) -> None:
    progress.report(event.task, done=event.done, total=event.total, unit=event.unit, **event.values)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Give processes started within this context ``values`` in their environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
