"""The one door through which every stage runs, whoever asks: CLI, DVC, Kubeflow or TorchX.

It validates the sections, checks what the stage reads, finds out whether the work is done already,
calls the stage on a folder aside, and publishes that folder with its manifest. Killed at any
moment, the same command goes on: the folder aside is named after the computation's key.
"""

import importlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rglcd.config import Section, validate_section
from rglcd.data.manifest import (
    MANIFEST,
    Manifest,
    digest_of,
    folder_digest,
    read_manifest,
    results_digest,
    scan,
    write_json,
    write_manifest,
)
from rglcd.errors import InputError
from rglcd.stages.table import SOURCE, Stage, maker_of, may_be_absent, stage_named

TIMINGS = "timings.json"


@dataclass(frozen=True)
class Output:
    """Where a stage writes. ``folder`` becomes the artifact when the stage returns; what a killed run left in it is still there.

    ``previous`` is the artifact published before, if any: parts that its own keys prove equal may be taken over from it.
    """

    folder: Path
    previous: Path | None


@dataclass(frozen=True)
class Outcome:
    """What came of asking for a stage: its manifest, and whether there was anything to do."""

    manifest: Manifest
    folder: Path
    was_done: bool
    seconds: float


def run_stage(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Mapping[str, Path]) -> Outcome:
    """Run stage ``name`` unless its output stands already, and publish what it made.

    ``sections`` holds the configuration sections it reads, ``artifacts`` a folder for each artifact it reads or
    writes; an input whose maker does not run is left out. Raises :class:`InputError` for a wrong section, a missing or
    altered input (naming the stage that makes it).
    """
    work = _plan(name, sections, artifacts)
    if (work.aside / MANIFEST).is_file():
        # Killed between the last two renames: the work is done, only its publication is not.
        return Outcome(_publish(work), work.published, was_done=True, seconds=0.0)
    standing = _standing(work)
    if standing is not None:
        # Killed at the very last, it left what it had replaced.
        shutil.rmtree(work.retired, ignore_errors=True)
        return Outcome(standing, work.published, was_done=True, seconds=0.0)
    started = time.perf_counter()
    facts = _call(work)
    seconds = time.perf_counter() - started
    for leftover in work.aside.rglob(".*.aside"):
        # A kill in the middle of a write leaves the file aside; it was never part of the work.
        leftover.unlink()
    write_json(work.aside / TIMINGS, _timings(work.inputs) | {name: round(seconds, 3)})
    write_manifest(work.aside, _manifest(work, facts))
    return Outcome(_publish(work), work.published, was_done=False, seconds=seconds)


def assist_stage(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Mapping[str, Path]) -> None:
    """What every rank but the first does: the same work, nothing published."""
    work = _plan(name, sections, artifacts)
    # In this order, so that a leader who publishes between the two questions is seen by the second.
    if not (work.aside / MANIFEST).is_file() and _standing(work) is None:
        _call(work)


def standing_outcome(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Mapping[str, Path]) -> Outcome | None:
    """What :func:`run_stage` would find done already; ``None`` when there is work to do. Raises as it does."""
    work = _plan(name, sections, artifacts)
    standing = _standing(work)
    return Outcome(standing, work.published, was_done=True, seconds=0.0) if standing is not None else None


@dataclass(frozen=True)
class _Work:
    """A stage with everything it was given, validated, and the key that names the computation."""

    stage: Stage
    sections: dict[str, Section]
    inputs: dict[str, Path]
    made_from: dict[str, str]
    key: str
    output: str
    published: Path

    @property
    def aside(self) -> Path:
        return self.published.with_name(f".{self.published.name}.{self.key[:12]}.aside")

    @property
    def retired(self) -> Path:
        return self.published.with_name(f".{self.published.name}.retired")


def _plan(name: str, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Mapping[str, Path]) -> _Work:
    stage = stage_named(name)
    validated = {section: _validated(section, sections) for section in stage.sections}
    for artifact in stage.inputs:
        if artifact not in artifacts and not may_be_absent(artifact):
            raise InputError(f"{name} reads {artifact}: say which folder it is in")
    inputs = {artifact: artifacts[artifact] for artifact in stage.inputs if artifact in artifacts}
    made_from = {artifact: _input_digest(artifact, folder) for artifact, folder in inputs.items()}
    (output,) = stage.outputs
    return _Work(stage, validated, inputs, made_from, stage_key(stage, validated, made_from), output, artifacts[output])


def _call(work: _Work) -> Mapping[str, Any]:
    """Call the stage's entry on the folder aside; folders of other, unfinished computations are swept away first."""
    for stale in work.published.parent.glob(f".{work.published.name}.*.aside"):
        if stale != work.aside:
            shutil.rmtree(stale, ignore_errors=True)
    work.aside.mkdir(parents=True, exist_ok=True)
    previous = work.published if _manifest_standing(work) is not None else None
    module, _, function = work.stage.entry.partition(":")
    entry: Callable[..., Mapping[str, Any]] = getattr(importlib.import_module(module), function)
    read = {artifact: work.inputs.get(artifact) for artifact in work.stage.inputs}
    return entry(*work.sections.values(), **read, **{work.output: Output(work.aside, previous)})


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


def _input_digest(artifact: str, folder: Path) -> str:
    if artifact == SOURCE:
        if not folder.is_dir():
            raise InputError(f"{folder} is missing: the source folder (for the toy: rglcd toy data {folder})")
        return folder_digest(folder)
    return read_manifest(folder, made_by=maker_of(artifact).name).digest


def _standing(work: _Work) -> Manifest | None:
    """The manifest of what is published, if it is this very computation and no file is missing or cut."""
    manifest = _manifest_standing(work)
    if manifest is None or manifest.key != work.key:
        return None
    for name, entry in manifest.files.items():
        path = work.published / name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return None
    return manifest


def _manifest_standing(work: _Work) -> Manifest | None:
    try:
        return read_manifest(work.published, made_by=work.stage.name)
    except InputError:
        # Absent, or cut: either way this stage is what makes it.
        return None


def _timings(inputs: Mapping[str, Path]) -> dict[str, float]:
    """Seconds of every stage behind the inputs."""
    merged: dict[str, float] = {}
    for folder in inputs.values():
        path = folder / TIMINGS
        if path.is_file():
            merged |= json.loads(path.read_text(encoding="utf-8"))
    return merged


def _manifest(work: _Work, facts: Mapping[str, Any]) -> Manifest:
    files = scan(work.aside)
    digest = results_digest(files)
    sections = {name: section.model_dump(mode="json") for name, section in work.sections.items()}
    lineage: dict[str, dict[str, Any]] = {}
    for artifact, folder in work.inputs.items():
        if artifact != SOURCE:
            lineage |= read_manifest(folder, made_by=maker_of(artifact).name).lineage
    stage = work.stage
    lineage[stage.name] = {"version": stage.version, "key": work.key, "digest": digest, "sections": sections, "facts": dict(facts)}
    return Manifest(
        artifact=work.output,
        stage=stage.name,
        version=stage.version,
        key=work.key,
        digest=digest,
        inputs=work.made_from,
        sections=sections,
        files=files,
        facts=dict(facts),
        lineage=lineage,
    )


def _publish(work: _Work) -> Manifest:
    """Put the folder aside, whole with its manifest, where the artifact belongs."""
    shutil.rmtree(work.retired, ignore_errors=True)
    if work.published.exists():
        work.published.rename(work.retired)
    work.aside.rename(work.published)
    shutil.rmtree(work.retired, ignore_errors=True)
    return read_manifest(work.published, made_by=work.stage.name)
