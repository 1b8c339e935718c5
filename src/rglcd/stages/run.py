"""Single entry point for running a stage: CLI, DVC, Kubeflow and TorchX all come through here.

It validates the sections, checks what the stage reads, finds out whether the work is done already, calls the stage
on a work folder, and publishes that folder with its manifest. Killed at any moment, the same command goes on: the work folder is
named after the computation's key. Results live by key (:mod:`rglcd.store.places`): what another configuration made is kept, and put
in force when it is asked for again. The leader alone publishes, and neither it nor any rank or worker removes what another run made.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rglcd.errors import InputError
from rglcd.stages.computation import Artifacts, Computation, Sections, opened_inputs, plan, refuse_changed_source
from rglcd.stages.publish import finish, is_done, is_finished, previous_result, publish, standing
from rglcd.store.artifact_store import check_before_work, uploading_tasks
from rglcd.store.disk_space import disk_space_for
from rglcd.store.manifest import Manifest, write_json
from rglcd.store.places import description_of
from rglcd.store.shard_tasks import WHOLE, Part


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


def run_stage(name: str, sections: Sections, artifacts: Artifacts, *, begin: Callable[[], None] = lambda: None) -> Outcome:
    """Run stage ``name`` unless its output stands already, and publish what it made. ``begin`` is called before there is work.

    ``sections`` holds the configuration sections it reads, ``artifacts`` a location for each artifact it reads or
    writes; an input whose maker does not run is left out. Raises :class:`InputError` for a wrong section, a missing or
    altered input (naming the stage that makes it), :class:`TryAgain` for a store that cannot be reached for long, for a
    disk that is full, and for a source folder that was changed meanwhile.
    """
    computation = plan(name, sections, artifacts)
    with disk_space_for(computation.published), computation.location.places.making(computation.key):
        return _run(computation, begin)


def run_part(name: str, sections: Sections, artifacts: Artifacts, *, index: int) -> None:
    """One worker's share of a stage whose shard tasks are independent. :func:`run_stage` finds them finished and publishes the whole.

    ``index`` counts from 0 to what the stage's configuration says under ``parts``. Parts may run at the same time, in one
    folder or on machines that share nothing but the store; a task that two of them do is published once.
    """
    computation = plan(name, sections, artifacts)
    part = _part(computation, index)
    if not is_done(computation):
        check_before_work(computation.store, part)
        with disk_space_for(computation.published), opened_inputs(computation) as folders:
            _call(computation, folders, part)


def assist_stage(name: str, sections: Sections, artifacts: Artifacts) -> None:
    """What every rank but the first does once that has begun: the same work, nothing published."""
    computation = plan(name, sections, artifacts)
    with disk_space_for(computation.published), opened_inputs(computation) as folders:
        _call(replace(computation, store=None), folders, WHOLE)


def standing_outcome(name: str, sections: Sections, artifacts: Artifacts) -> Outcome | None:
    """What :func:`run_stage` would find done already; ``None`` when there is work to do. Raises as it does."""
    computation = plan(name, sections, artifacts)
    manifest = standing(computation)
    return None if manifest is None else _outcome(computation, manifest)


def _run(computation: Computation, begin: Callable[[], None]) -> Outcome:
    if is_finished(computation):  # killed between the last two renames
        return _outcome(computation, publish(computation))
    manifest = standing(computation)
    if manifest is not None:
        return _outcome(computation, manifest)
    check_before_work(computation.store)
    started = time.perf_counter()
    with opened_inputs(computation) as folders:
        begin()
        facts = _call(computation, folders, WHOLE)
        seconds = time.perf_counter() - started
        refuse_changed_source(computation)
        finish(computation, facts, read=folders, seconds=seconds)
    return _outcome(computation, publish(computation), was_done=False, seconds=seconds)


def _call(computation: Computation, folders: Mapping[str, Path], part: Part) -> Mapping[str, Any]:
    """Call the stage's entry on the work folder."""
    module, _, function = computation.stage.entry.partition(":")
    entry: Callable[..., Mapping[str, Any]] = getattr(importlib.import_module(module), function)
    read = {artifact: folders.get(artifact) for artifact in computation.stage.inputs}
    with (
        computation.location.places.working(computation.key) as staging,
        uploading_tasks(computation.store, computation.key, staging),
        previous_result(computation) as previous,
    ):
        sections = {name: computation.sections[name].model_dump(mode="json") for name in computation.stage.keyed}
        write_json(description_of(staging), sections)  # for `rglcd runs`
        return entry(*computation.sections.values(), **read, **{computation.output: Output(staging, previous, part)})


def _part(computation: Computation, index: int) -> Part:
    if computation.stage.parts is None:
        raise InputError(f"{computation.stage.name} has no parts: run it whole")
    section, _, key = computation.stage.parts.partition(".")
    return Part(index, getattr(computation.sections[section], key))


def _outcome(computation: Computation, manifest: Manifest, *, was_done: bool = True, seconds: float = 0.0) -> Outcome:
    return Outcome(manifest, computation.published, was_done=was_done, seconds=seconds)
