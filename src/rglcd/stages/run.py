"""The one door through which every stage runs, whoever asks: CLI, DVC, Kubeflow or TorchX.

It validates the sections, checks what the stage reads, finds out whether the work is done already,
calls the stage on a folder aside, and publishes that folder with its manifest. Killed at any
moment, the same command goes on: the folder aside is named after the computation's key.
"""

import importlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rglcd.config import Section, validate_section
from rglcd.errors import InputError
from rglcd.stages.table import SOURCE, Stage, maker_of, may_be_absent, stage_named
from rglcd.store.artifacts import ArtifactStore, Place, fetch_source, fetch_view, source_view, units_handed_in
from rglcd.store.disk_space import room_for
from rglcd.store.files import is_remote
from rglcd.store.local_cache import held, make_room
from rglcd.store.locks import claimed
from rglcd.store.manifest import (
    MANIFEST,
    Manifest,
    altered_files,
    digest_of,
    folder_digest,
    read_manifest,
    results_digest,
    scan,
    write_json,
    write_manifest,
)
from rglcd.store.work_unit import WHOLE, Part, release_held

TIMINGS = "timings.json"


@dataclass(frozen=True)
class Output:
    """Where a stage writes. ``folder`` becomes the artifact when the stage returns; what a killed run left in it is still there.

    ``previous`` is the artifact published before, if any: parts that its own keys prove equal may be taken over from it.
    ``part`` says which of the stage's units of work are wanted of this call.
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


Artifacts = Mapping[str, Path | str]
"""Where each artifact is: a local folder, or an object store's (``s3://bucket/prefix``)."""


def run_stage(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> Outcome:
    """Run stage ``name`` unless its output stands already, and publish what it made.

    ``sections`` holds the configuration sections it reads, ``artifacts`` a place for each artifact it reads or
    writes; an input whose maker does not run is left out. Raises :class:`InputError` for a wrong section, a missing or
    altered input (naming the stage that makes it), :class:`TryAgain` for a store that cannot be reached for long and for a
    disk that is full.
    """
    work = _plan(name, sections, artifacts)
    with room_for(work.published), _alone(work):
        return _run(work)


@contextmanager
def _alone(work: "_Work") -> Iterator[None]:
    """While no other process makes the same artifact as a whole; what the one before it made is then found standing."""
    lock = work.published.with_name(f".{work.published.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not stack.enter_context(claimed(lock, wait=False)):
            print(f"rglcd: another process is making {work.published}; this one waits for it", file=sys.stderr)
            stack.enter_context(claimed(lock, wait=True))
        stack.callback(lock.unlink, missing_ok=True)
        yield


def _run(work: "_Work") -> Outcome:
    if (work.aside / MANIFEST).is_file():
        # Killed between the last two renames: the work is done, only its publication is not.
        return _outcome(work, _publish(work), was_done=True, seconds=0.0)
    standing = _standing(work)
    if standing is not None:
        # Killed at the very last, it left what it had replaced.
        shutil.rmtree(work.retired, ignore_errors=True)
        return _outcome(work, standing, was_done=True, seconds=0.0)
    started = time.perf_counter()
    with _inputs_here(work):
        facts = _call(work, WHOLE)
        seconds = time.perf_counter() - started
        for leftover in work.aside.rglob(".*.aside"):
            # A kill in the middle of a write leaves the file aside; it was never part of the work.
            leftover.unlink()
        write_json(work.aside / TIMINGS, _timings(work.inputs) | {work.stage.name: round(seconds, 3)})
    write_manifest(work.aside, _manifest(work, facts))
    return _outcome(work, _publish(work), was_done=False, seconds=seconds)


def run_part(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts, *, index: int) -> None:
    """One worker's share of a stage whose units are independent. :func:`run_stage` finds them finished and publishes the whole.

    ``index`` counts from 0 to what the stage's configuration says under ``parts``. Parts may run at the same time, in one
    folder or on machines that share nothing but the store; a unit that two of them make is published once.
    """
    work = _plan(name, sections, artifacts)
    part = _part(work, index)
    if not (work.aside / MANIFEST).is_file() and _standing(work) is None:
        with room_for(work.published), _inputs_here(work):
            _call(work, part)


def _part(work: "_Work", index: int) -> Part:
    if work.stage.parts is None:
        raise InputError(f"{work.stage.name} has no parts: run it whole")
    section, _, key = work.stage.parts.partition(".")
    return Part(index, getattr(work.sections[section], key))


def assist_stage(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> None:
    """What every rank but the first does: the same work, nothing published."""
    work = _plan(name, sections, artifacts)
    # In this order, so that a leader who publishes between the two questions is seen by the second.
    if not (work.aside / MANIFEST).is_file() and _standing(work) is None:
        with room_for(work.published), _inputs_here(work):
            _call(replace(work, handed_in=None), WHOLE)


@dataclass(frozen=True)
class _Input:
    """An artifact that is read: the folder to read it in, and its manifest (the source has none, but it may have a URL)."""

    folder: Path
    manifest: Manifest | None
    digest: str
    url: str | None = None


def standing_outcome(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> Outcome | None:
    """What :func:`run_stage` would find done already; ``None`` when there is work to do. Raises as it does."""
    work = _plan(name, sections, artifacts)
    standing = _standing(work)
    return Outcome(standing, work.published, was_done=True, seconds=0.0) if standing is not None else None


@dataclass(frozen=True)
class _Work:
    """A stage with everything it was given, validated, and the key that names the computation.

    ``handed_in`` is the store that receives finished units and what is published, if the output's bytes lie in one.
    """

    stage: Stage
    sections: dict[str, Section]
    inputs: dict[str, _Input]
    key: str
    output: str
    place: Place
    handed_in: ArtifactStore | None

    @property
    def published(self) -> Path:
        return self.place.folder

    @property
    def aside(self) -> Path:
        return self.published.with_name(f".{self.published.name}.{self.key[:12]}.aside")

    @property
    def retired(self) -> Path:
        return self.published.with_name(f".{self.published.name}.retired")


def _plan(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> _Work:
    stage = stage_named(name)
    validated = {section: _validated(section, sections) for section in stage.sections}
    for artifact in stage.inputs:
        if artifact not in artifacts and not may_be_absent(artifact):
            raise InputError(f"{name} reads {artifact}: say which folder it is in")
    inputs = {artifact: _input(artifact, artifacts[artifact]) for artifact in stage.inputs if artifact in artifacts}
    key = stage_key(stage, validated, {artifact: read.digest for artifact, read in inputs.items()})
    (output,) = stage.outputs
    place = Place.of(output, artifacts[output])
    return _Work(stage, validated, inputs, key, output, place, None if place.uri is None else ArtifactStore(place.uri))


def _call(work: _Work, part: Part) -> Mapping[str, Any]:
    """Call the stage's entry on the folder aside; folders of other, unfinished computations are swept away first."""
    for stale in work.published.parent.glob(f".{work.published.name}.*.aside"):
        if stale != work.aside:
            shutil.rmtree(stale, ignore_errors=True)
    work.aside.mkdir(parents=True, exist_ok=True)
    module, _, function = work.stage.entry.partition(":")
    entry: Callable[..., Mapping[str, Any]] = getattr(importlib.import_module(module), function)
    read = {artifact: work.inputs[artifact].folder if artifact in work.inputs else None for artifact in work.stage.inputs}
    with units_handed_in(work.handed_in, work.key, work.aside), _previous(work) as previous:
        return entry(*work.sections.values(), **read, **{work.output: Output(work.aside, previous, part)})


@contextmanager
def _inputs_here(work: _Work) -> Iterator[None]:
    """While what lies in a store is here; of what the stage streams, only the small JSON files that say what there is."""
    with ExitStack() as stack:
        for artifact, read in work.inputs.items():
            if read.url is not None:
                stack.enter_context(held(read.folder))
                fetch_source(read.url, read.folder)
            elif read.manifest is not None and read.manifest.store is not None:
                stack.enter_context(held(read.folder))
                ahead = ".json" if artifact in work.stage.streams else ""
                fetch_view(read.folder, read.manifest, wanted=partial(_ends_with, ahead))
        yield


def _ends_with(suffix: str, name: str) -> bool:
    return name.endswith(suffix)


@contextmanager
def _previous(work: _Work) -> Iterator[Path | None]:
    """The artifact published before, its files here if the stage may take parts over from it."""
    manifest = _manifest_standing(work)
    if manifest is None or (manifest.store is not None and work.output not in work.stage.reuses):
        yield None
        return
    folder = work.place.readable(manifest)
    if manifest.store is None:
        yield folder
        return
    with held(folder):
        fetch_view(folder, manifest, wanted=lambda _: True)
        yield folder


def stage_key(stage: Stage, sections: Mapping[str, Section], made_from: Mapping[str, str]) -> str:
    """The name of a computation: stage, code version, configuration, and the digests of what it reads."""
    return digest_of(
        {
            "stage": stage.name,
            "version": stage.version,
            "sections": {name: section.model_dump(mode="json") for name, section in sections.items()},
            "inputs": dict(made_from),
        }
    )


def _validated(name: str, sections: Mapping[str, Mapping[str, Any] | Section]) -> Section:
    if name not in sections:
        raise InputError(f"section {name!r} is missing")
    values = sections[name]
    return values if isinstance(values, Section) else validate_section(name, values)


def _input(artifact: str, given: Path | str) -> _Input:
    if artifact == SOURCE:
        return _source(given)
    place = Place.of(artifact, given)
    manifest = place.read(made_by=maker_of(artifact).name)
    return _Input(place.readable(manifest), manifest, manifest.digest)


def _source(given: Path | str) -> _Input:
    if is_remote(given):
        view, digest = source_view(str(given))
        return _Input(view, None, digest, url=str(given))
    folder = Path(given)
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the source folder (for the toy: rglcd toy data {folder})")
    return _Input(folder, None, folder_digest(folder))


def _standing(work: _Work) -> Manifest | None:
    """The manifest of what is published, if it is this very computation and no file is missing or cut."""
    manifest = _manifest_standing(work)
    if manifest is not None and manifest.key == work.key and _is_whole(work.published, manifest, kept=work.stage.kept):
        if work.handed_in is None or manifest.store == work.handed_in.uri:
            return manifest
        if manifest.store is None:  # made before there was a store: its bytes go there now
            return _publish_to(work, work.handed_in, work.published, manifest)
    made = None if work.handed_in is None else work.handed_in.made(work.key)
    if made is None or work.handed_in is None:
        return None
    work.handed_in.point_to(made)
    work.place.mirror(made, kept=work.stage.kept)
    return made


def _is_whole(folder: Path, manifest: Manifest, *, kept: tuple[str, ...]) -> bool:
    """Whether every file that should lie in ``folder`` does, with its size."""
    names = manifest.files if manifest.store is None else manifest.matching(kept)
    paths = {folder / name: manifest.files[name].bytes for name in names}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _manifest_standing(work: _Work) -> Manifest | None:
    try:
        return read_manifest(work.published, made_by=work.stage.name)
    except InputError:
        # Absent, or cut: either way this stage is what makes it.
        return None


def _timings(inputs: Mapping[str, _Input]) -> dict[str, float]:
    """Seconds of every stage behind the inputs."""
    merged: dict[str, float] = {}
    for artifact, read in inputs.items():
        if read.manifest is not None and TIMINGS in read.manifest.files:
            problems = altered_files(read.folder, read.manifest, names=[TIMINGS])
            if problems:
                raise InputError(f"{read.folder}: {problems[0]}; make it again: rglcd run {maker_of(artifact).name}")
            merged |= json.loads((read.folder / TIMINGS).read_text(encoding="utf-8"))
    return merged


def _manifest(work: _Work, facts: Mapping[str, Any]) -> Manifest:
    files = dict(sorted((release_held(work.aside) | scan(work.aside)).items()))
    digest = results_digest(files)
    sections = {name: section.model_dump(mode="json") for name, section in work.sections.items()}
    lineage: dict[str, dict[str, Any]] = {}
    for read in work.inputs.values():
        lineage |= {} if read.manifest is None else read.manifest.lineage
    stage = work.stage
    lineage[stage.name] = {"version": stage.version, "key": work.key, "digest": digest, "sections": sections, "facts": dict(facts)}
    return Manifest(
        artifact=work.output,
        stage=stage.name,
        version=stage.version,
        key=work.key,
        digest=digest,
        inputs={artifact: read.digest for artifact, read in work.inputs.items()},
        sections=sections,
        files=files,
        facts=dict(facts),
        lineage=lineage,
    )


def _publish(work: _Work) -> Manifest:
    """Put the folder aside, whole with its manifest, where the artifact belongs."""
    if work.handed_in is not None:
        return _publish_to(work, work.handed_in, work.aside, read_manifest(work.aside, made_by=work.stage.name))
    shutil.rmtree(work.retired, ignore_errors=True)
    if work.published.exists():
        work.published.rename(work.retired)
    work.aside.rename(work.published)
    shutil.rmtree(work.retired, ignore_errors=True)
    return read_manifest(work.published, made_by=work.stage.name)


def _publish_to(work: _Work, store: ArtifactStore, folder: Path, manifest: Manifest) -> Manifest:
    """Upload ``folder`` and commit; then leave the manifest where the artifact belongs, and the files as its view."""
    standing = store.publish(folder, manifest, already=[name for name in manifest.files if not (folder / name).is_file()])
    with held(view := work.place.readable(standing)):
        if standing.files == manifest.files and not view.exists():
            write_manifest(folder, standing)
            folder.rename(view)
        work.place.mirror(standing, kept=work.stage.kept)
    make_room(view.parent, 0)
    if folder != work.published:
        shutil.rmtree(folder, ignore_errors=True)
    return standing


def _outcome(work: _Work, manifest: Manifest, *, was_done: bool, seconds: float) -> Outcome:
    return Outcome(manifest, work.published, was_done=was_done, seconds=seconds)
