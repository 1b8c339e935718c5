"""Single entry point for running a stage: CLI, DVC, Kubeflow and TorchX all come through here.

It validates the sections, checks what the stage reads, finds out whether the work is done already, calls the stage
on a staging folder, and publishes that folder with its manifest. Killed at any moment, the same command goes on:
the staging folder is named after the computation's key.
"""

import importlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rglcd.errors import InputError
from rglcd.stages.computation import Artifacts, Computation, Sections, inputs_at_hand, plan
from rglcd.stages.publish import finish, is_finished, previous_result, publish, standing
from rglcd.store.artifact_store import uploading_tasks
from rglcd.store.disk_space import disk_space_for
from rglcd.store.locks import exclusive_lock, try_exclusive_lock
from rglcd.store.manifest import Manifest
from rglcd.store.shard_tasks import WHOLE, Part
from rglcd.store.staging import remove_replaced


@dataclass(frozen=True)
class Output:
    """Where a stage writes. ``folder`` becomes the artifact when the stage returns; what a killed run left in it is still there.

    ``previous`` is the artifact published before, if any: parts that its own keys prove equal may be taken over from it.
    ``part`` says which of the stage's shard tasks are wanted of this call.
    """

    folder: Path
    previous: Path | None
    part: Part = WHOLE


@dataclass(frozen=True)
class Outcome:
    """What came of asking for a stage: its manifest, and whether there was anything to do.

    ``folder`` holds the manifest, and the files too unless the manifest names the store that has them.
    """

    manifest: Manifest
    folder: Path
    was_done: bool
    seconds: float


def run_stage(name: str, sections: Sections, artifacts: Artifacts) -> Outcome:
    """Run stage ``name`` unless its output stands already, and publish what it made.

    ``sections`` holds the configuration sections it reads, ``artifacts`` a location for each artifact it reads or
    writes; an input whose maker does not run is left out. Raises :class:`InputError` for a wrong section, a missing or
    altered input (naming the stage that makes it), :class:`TryAgain` for a store that cannot be reached for long and for a
    disk that is full.
    """
    computation = plan(name, sections, artifacts)
    with disk_space_for(computation.published), _alone(computation):
        return _run(computation)


def run_part(name: str, sections: Sections, artifacts: Artifacts, *, index: int) -> None:
    """One worker's share of a stage whose shard tasks are independent. :func:`run_stage` finds them finished and publishes the whole.

    ``index`` counts from 0 to what the stage's configuration says under ``parts``. Parts may run at the same time, in one
    folder or on machines that share nothing but the store; a task that two of them do is published once.
    """
    computation = plan(name, sections, artifacts)
    part = _part(computation, index)
    if not is_finished(computation) and standing(computation) is None:
        with disk_space_for(computation.published), inputs_at_hand(computation):
            _call(computation, part)


def assist_stage(name: str, sections: Sections, artifacts: Artifacts) -> None:
    """What every rank but the first does: the same work, nothing published."""
    computation = plan(name, sections, artifacts)
    # In this order, so that a leader who publishes between the two questions is seen by the second.
    if not is_finished(computation) and standing(computation) is None:
        with disk_space_for(computation.published), inputs_at_hand(computation):
            _call(replace(computation, store=None), WHOLE)


def standing_outcome(name: str, sections: Sections, artifacts: Artifacts) -> Outcome | None:
    """What :func:`run_stage` would find done already; ``None`` when there is work to do. Raises as it does."""
    computation = plan(name, sections, artifacts)
    manifest = standing(computation)
    return None if manifest is None else _outcome(computation, manifest)


@contextmanager
def _alone(computation: Computation) -> Iterator[None]:
    """While no other process makes the same artifact as a whole; what the one before it made is then found standing."""
    lock = computation.published.with_name(f".{computation.published.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not stack.enter_context(try_exclusive_lock(lock)):
            print(f"rglcd: another process is making {computation.published}; this one waits for it", file=sys.stderr)
            stack.enter_context(exclusive_lock(lock))
        stack.callback(lock.unlink, missing_ok=True)
        yield


def _run(computation: Computation) -> Outcome:
    if is_finished(computation):  # killed between the last two renames
        return _outcome(computation, publish(computation))
    manifest = standing(computation)
    if manifest is not None:
        remove_replaced(computation.published)
        return _outcome(computation, manifest)
    started = time.perf_counter()
    with inputs_at_hand(computation):
        facts = _call(computation, WHOLE)
        seconds = time.perf_counter() - started
        finish(computation, facts, seconds=seconds)
    return _outcome(computation, publish(computation), was_done=False, seconds=seconds)


def _call(computation: Computation, part: Part) -> Mapping[str, Any]:
    """Call the stage's entry on the staging folder; folders of other, unfinished computations are removed first."""
    for stale in computation.other_staging():
        shutil.rmtree(stale, ignore_errors=True)
    computation.staging.mkdir(parents=True, exist_ok=True)
    module, _, function = computation.stage.entry.partition(":")
    entry: Callable[..., Mapping[str, Any]] = getattr(importlib.import_module(module), function)
    inputs = computation.inputs
    read = {artifact: inputs[artifact].folder if artifact in inputs else None for artifact in computation.stage.inputs}
    uploading = uploading_tasks(computation.store, computation.key, computation.staging)
    with uploading, previous_result(computation) as previous:
        return entry(*computation.sections.values(), **read, **{computation.output: Output(computation.staging, previous, part)})


def _part(computation: Computation, index: int) -> Part:
    if computation.stage.parts is None:
        raise InputError(f"{computation.stage.name} has no parts: run it whole")
    section, _, key = computation.stage.parts.partition(".")
    return Part(index, getattr(computation.sections[section], key))


def _outcome(computation: Computation, manifest: Manifest, *, was_done: bool = True, seconds: float = 0.0) -> Outcome:
    return Outcome(manifest, computation.published, was_done=was_done, seconds=seconds)
