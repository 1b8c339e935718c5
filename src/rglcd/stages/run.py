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
from rglcd.stages.table import SOURCE, Stage, maker_of, stage_named

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
    stage = stage_named(name)
    validated = {section: _validated(section, sections) for section in stage.sections}
    inputs = {artifact: artifacts[artifact] for artifact in stage.inputs if artifact in artifacts}
    (output,) = stage.outputs
    published = artifacts[output]
    made_from = {artifact: _input_digest(artifact, folder) for artifact, folder in inputs.items()}
    key = stage_key(stage, validated, made_from)

    standing = _standing(published, key)
    if standing is not None:
        return Outcome(standing, published, was_done=True, seconds=0.0)

    aside = _folder_aside(published, key)
    if (aside / MANIFEST).is_file():
        # Killed between the last two renames: the work is done, only its publication is not.
        return Outcome(_publish(aside, published), published, was_done=True, seconds=0.0)
    previous = published if (published / MANIFEST).is_file() else None
    started = time.perf_counter()
    facts = _resolve(stage)(
        *validated.values(),
        **{artifact: inputs.get(artifact) for artifact in stage.inputs},
        **{output: Output(aside, previous)},
    )
    seconds = time.perf_counter() - started
    write_json(aside / TIMINGS, _timings(inputs) | {stage.name: round(seconds, 3)})
    manifest = _manifest(stage, output, key, aside, validated=validated, inputs=inputs, made_from=made_from, facts=facts)
    write_manifest(aside, manifest)
    return Outcome(_publish(aside, published), published, was_done=False, seconds=seconds)


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


def _standing(published: Path, key: str) -> Manifest | None:
    """The manifest of what is published, if it is this very computation and no file is missing or cut."""
    if not (published / MANIFEST).is_file():
        return None
    manifest = read_manifest(published, made_by="")
    whole = all((published / name).is_file() and (published / name).stat().st_size == entry.bytes for name, entry in manifest.files.items())
    return manifest if manifest.key == key and whole else None


def _folder_aside(published: Path, key: str) -> Path:
    """``.<name>.<key>.aside`` beside the artifact; those of other computations are swept away."""
    aside = published.with_name(f".{published.name}.{key[:12]}.aside")
    for stale in published.parent.glob(f".{published.name}.*.aside"):
        if stale != aside:
            shutil.rmtree(stale)
    aside.mkdir(parents=True, exist_ok=True)
    return aside


def _resolve(stage: Stage) -> Callable[..., Mapping[str, Any]]:
    module, _, function = stage.entry.partition(":")
    resolved: Callable[..., Mapping[str, Any]] = getattr(importlib.import_module(module), function)
    return resolved


def _timings(inputs: Mapping[str, Path]) -> dict[str, float]:
    """Seconds of every stage behind the inputs."""
    merged: dict[str, float] = {}
    for folder in inputs.values():
        path = folder / TIMINGS
        if path.is_file():
            merged |= json.loads(path.read_text(encoding="utf-8"))
    return merged


def _manifest(
    stage: Stage,
    output: str,
    key: str,
    aside: Path,
    *,
    validated: Mapping[str, Section],
    inputs: Mapping[str, Path],
    made_from: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Manifest:
    files = scan(aside)
    sections = {name: section.model_dump(mode="json") for name, section in validated.items()}
    lineage: dict[str, dict[str, Any]] = {}
    for artifact, folder in inputs.items():
        if artifact != SOURCE:
            lineage |= read_manifest(folder, made_by=maker_of(artifact).name).lineage
    digest = results_digest(files)
    lineage[stage.name] = {"version": stage.version, "key": key, "digest": digest, "sections": sections, "facts": dict(facts)}
    return Manifest(output, stage.name, stage.version, key, digest, dict(made_from), sections, files, dict(facts), lineage)


def _publish(aside: Path, published: Path) -> Manifest:
    """Put ``aside``, whole with its manifest, where ``published`` is."""
    retired = published.with_name(f".{published.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if published.exists():
        published.rename(retired)
    aside.rename(published)
    shutil.rmtree(retired, ignore_errors=True)
    return read_manifest(published, made_by="")
