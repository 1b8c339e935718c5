"""Run a stage where the settings in force say: in this process, as a job of this machine, or as one in a cluster.

Beside :mod:`rglcd.launch.settings`, processes that start one another speak through the environment:

``RGLCD_PREFLIGHT``       what the machine was promised to be (:mod:`rglcd.launch.preflight`), checked before the stage begins
``RGLCD_PROGRESS``        file that receives progress as JSON lines, for the process that started this one
``TORCHELASTIC_ERROR_FILE``  file that receives the reason of a failure (see :mod:`rglcd.launch.failure`)
``RANK``, ``WORLD_SIZE``  torchrun's number of this process among those that run the stage together, and theirs
``RGLCD_LAUNCHER``        what started these, which they do not outlive (:mod:`rglcd.launch.rank`)
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from rglcd import progress
from rglcd.config import Section
from rglcd.errors import TryAgain
from rglcd.launch.child_processes import PROGRESS, job_progress
from rglcd.launch.cluster_job import launch
from rglcd.launch.failure import JobError
from rglcd.launch.rank import end_with_launcher, first_rank_works, is_first_rank, telling_the_others
from rglcd.launch.settings import ClusterSettings, Runtime, exporting_store, load_settings
from rglcd.launch.trackers import tracking
from rglcd.signals import handling_stops
from rglcd.stages.computation import Artifacts
from rglcd.stages.run import Outcome, assist_stage, run_part, run_stage, standing_outcome
from rglcd.stages.table import Profile, Stage, stage_named
from rglcd.store.artifacts import ArtifactLocation

PREFLIGHT = "RGLCD_PREFLIGHT"


def execute(
    stage_name: str,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    part: int | None = None,
    before_work: Callable[[], None] = lambda: None,
) -> Outcome | None:
    """Run a stage where the settings in force say; arguments and errors are those of :func:`rglcd.stages.run.run_stage`.

    ``before_work`` is called unless there is nothing to do; what it raises ends the stage.

    ``part`` is the number of the one part to make of those that the configuration divides the stage into; it runs here.
    ``None`` for a part, and on every rank of a process group but the first, which alone publishes. Also raises
    :class:`~rglcd.launch.failure.JobError` when a job ends with an exit code of its own.
    """
    settings, stage = load_settings(), stage_named(stage_name)
    with exporting_store(settings):
        if part is not None:
            with _reporting_to_file(), _ending_when_asked():
                before_work()
                run_part(stage_name, sections, artifacts, index=part)
            return None
        if settings.runtime is not Runtime.INLINE and stage.profile is not Profile.CPU:
            return _execute_as_job(stage, sections, artifacts, before_work=before_work, run_job=_job_runner(settings, stage))
        with _reporting_to_file(), tracking(settings, stage, sections, artifacts), _collective_timeout(settings), _ending_when_asked():
            return _run_in_this_process(stage, sections, artifacts, before_work=before_work)


def _run_in_this_process(
    stage: Stage, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts, *, before_work: Callable[[], None]
) -> Outcome | None:
    end_with_launcher()
    if PREFLIGHT in os.environ:
        _check_machine(ArtifactLocation.of(stage.outputs[0], artifacts[stage.outputs[0]]))
    if not is_first_rank():
        if first_rank_works():
            assist_stage(stage.name, sections, artifacts)
        return None
    tell = telling_the_others()

    def begin() -> None:
        before_work()
        tell(True)

    outcome = run_stage(stage.name, sections, artifacts, begin=begin)
    if outcome.was_done:
        tell(False)
    return outcome


def _execute_as_job(
    stage: Stage,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    *,
    before_work: Callable[[], None],
    run_job: "_RunJob",
) -> Outcome:
    # Asked here too: eight GPUs are not waited for to find out that there is nothing to do.
    standing = standing_outcome(stage.name, sections, artifacts)
    if standing is not None:
        return standing
    before_work()
    started = time.perf_counter()
    with job_progress():
        run_job(stage.name, sections=sections, artifacts=artifacts)
    made = standing_outcome(stage.name, sections, artifacts)
    if made is None:
        raise JobError(f"the job of {stage.name} ended well, and {artifacts[stage.outputs[0]]} does not hold its result here", exit_code=1)
    return replace(made, was_done=False, seconds=time.perf_counter() - started)


def _job_runner(settings: ClusterSettings, stage: Stage) -> "_RunJob":
    if settings.runtime is Runtime.KUBERNETES:
        return partial(launch, settings=settings)
    default = 2 if stage.profile is Profile.GPU_GANG else 1
    return partial(_run_here, num_processes=settings.num_processes or default)


class _RunJob(Protocol):
    """Runs a stage as a job to its end, elsewhere."""

    def __call__(self, stage_name: str, *, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> None: ...


def _run_here(stage_name: str, *, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts, num_processes: int) -> None:
    # Here, not above: TorchX takes a second to import, and most processes never submit anything.
    from rglcd.launch.appdef import stage_app
    from rglcd.launch.local_job import run_local_job

    stage, image = stage_named(stage_name), str(Path.cwd())
    run_local_job(stage_app(stage, sections=sections, artifacts=artifacts, image=image, num_processes=num_processes, python=sys.executable))


def _check_machine(output: ArtifactLocation) -> None:
    from rglcd.launch.preflight import preflight

    found = preflight(os.environ[PREFLIGHT], output=output)
    if is_first_rank():
        print("preflight: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), file=sys.stderr, flush=True)


@contextmanager
def _reporting_to_file() -> Iterator[None]:
    """Report to the file that the environment names; of a process group, rank 0 speaks for all."""
    path = os.environ.get(PROGRESS)
    if path is None:
        yield
        return
    with progress.reporting_to(progress.json_lines_sink(Path(path)) if is_first_rank() else _unheard):
        yield


@contextmanager
def _ending_when_asked() -> Iterator[None]:
    """SIGTERM ends the process with exit code 75, wherever it is: what is finished stays, as after a kill.

    While it trains, a stage has a handler of its own, which saves the state first.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _AskedToStop

    try:
        with handling_stops(end, stops=(signal.SIGTERM,)):
            yield
    except _AskedToStop:
        raise TryAgain("asked to stop; what is finished is kept, run the same command to go on") from None


class _AskedToStop(BaseException):
    """No Exception: code that takes any of them for a damaged picture must not take this for one."""


@contextmanager
def _collective_timeout(settings: ClusterSettings) -> Iterator[None]:
    """How long the ranks of this process's group wait for one another, if the settings say it."""
    if settings.collective_timeout is None:
        yield
        return
    from rglcd.training.distributed import waiting_at_most  # torch, which not every stage needs

    with waiting_at_most(settings.collective_timeout):
        yield


def _unheard(event: progress.Event) -> None:
    pass
