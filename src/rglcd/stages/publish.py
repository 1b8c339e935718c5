"""What a computation has published, and how what it made is published: in its folder, or in an object store."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rglcd.errors import InputError
from rglcd.stages.computation import Computation, Input
from rglcd.stages.table import maker_of
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.local_cache import make_space, pinned
from rglcd.store.local_copies import fetch_files
from rglcd.store.manifest import MANIFEST, Manifest, altered_files, read_manifest, results_digest, scan, write_json, write_manifest
from rglcd.store.shard_tasks import take_recorded_elsewhere
from rglcd.store.staging import STAGING, publish_folder

TIMINGS = "timings.json"


def is_finished(computation: Computation) -> bool:
    """Whether the work is done, and only its publication is not."""
    return (computation.staging / MANIFEST).is_file()


def finish(computation: Computation, facts: Mapping[str, Any], *, seconds: float) -> None:
    """Write the manifest of what the stage made; ``facts`` are the stage's, ``seconds`` the time that it took."""
    for leftover in computation.staging.rglob(f".*{STAGING}"):
        # A kill in the middle of a write leaves the staging file; it was never part of the work.
        leftover.unlink()
    write_json(computation.staging / TIMINGS, _timings(computation.inputs) | {computation.stage.name: round(seconds, 3)})
    write_manifest(computation.staging, _manifest(computation, facts))


def publish(computation: Computation) -> Manifest:
    """Put the staging folder, whole with its manifest, where the artifact belongs."""
    if computation.store is not None:
        manifest = read_manifest(computation.staging, made_by=computation.stage.name)
        return _publish_to(computation, computation.store, computation.staging, manifest)
    publish_folder(computation.staging, computation.published)
    return read_manifest(computation.published, made_by=computation.stage.name)


def standing(computation: Computation) -> Manifest | None:
    """The manifest of what is published, if it is this very computation and no file is missing or cut."""
    manifest, store = _published_manifest(computation), computation.store
    if manifest is not None and manifest.key == computation.key and _is_whole(computation, manifest):
        if store is None or manifest.store == store.uri:
            return manifest
        if manifest.store is None:  # made before there was a store: its bytes go there now
            return _publish_to(computation, store, computation.published, manifest)
    made = None if store is None else store.made(computation.key)
    if made is None or store is None:
        return None
    store.point_to(made)
    computation.location.mirror(made, kept=computation.stage.kept)
    return made


@contextmanager
def previous_result(computation: Computation) -> Iterator[Path | None]:
    """The artifact published before, its files here if the stage may take parts over from it."""
    manifest = _published_manifest(computation)
    if manifest is None or (manifest.store is not None and computation.output not in computation.stage.reuses):
        yield None
        return
    folder = computation.location.readable(manifest)
    if manifest.store is None:
        yield folder
        return
    with pinned(folder):
        fetch_files(folder, manifest, wanted=lambda _: True)
        yield folder


def _published_manifest(computation: Computation) -> Manifest | None:
    try:
        return read_manifest(computation.published, made_by=computation.stage.name)
    except InputError:
        # Absent, or cut: either way this stage is what makes it.
        return None


def _is_whole(computation: Computation, manifest: Manifest) -> bool:
    """Whether every file that should lie in the artifact's folder does, with its size."""
    names: Collection[str] = manifest.files if manifest.store is None else manifest.matching(computation.stage.kept)
    paths = {computation.published / name: manifest.files[name].bytes for name in names}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _timings(inputs: Mapping[str, Input]) -> dict[str, float]:
    """Seconds of every stage behind the inputs."""
    merged: dict[str, float] = {}
    for artifact, read in inputs.items():
        if read.manifest is not None and TIMINGS in read.manifest.files:
            problems = altered_files(read.folder, read.manifest, names=[TIMINGS])
            if problems:
                raise InputError(f"{read.folder}: {problems[0]}; make it again: rglcd run {maker_of(artifact).name}")
            merged |= json.loads((read.folder / TIMINGS).read_text(encoding="utf-8"))
    return merged


def _manifest(computation: Computation, facts: Mapping[str, Any]) -> Manifest:
    files = dict(sorted((take_recorded_elsewhere(computation.staging) | scan(computation.staging)).items()))
    digest = results_digest(files)
    sections = {name: section.model_dump(mode="json") for name, section in computation.sections.items()}
    lineage: dict[str, dict[str, Any]] = {}
    for read in computation.inputs.values():
        lineage |= {} if read.manifest is None else read.manifest.lineage
    stage = computation.stage
    lineage[stage.name] = {"version": stage.version, "key": computation.key, "digest": digest, "sections": sections, "facts": dict(facts)}
    return Manifest(
        artifact=computation.output,
        stage=stage.name,
        version=stage.version,
        key=computation.key,
        digest=digest,
        inputs={artifact: read.digest for artifact, read in computation.inputs.items()},
        sections=sections,
        files=files,
        facts=dict(facts),
        lineage=lineage,
    )


def _publish_to(computation: Computation, store: ArtifactStore, folder: Path, manifest: Manifest) -> Manifest:
    """Upload ``folder`` and commit; then leave the manifest where the artifact belongs, and the files as its local copy."""
    committed = store.publish(folder, manifest, already=[name for name in manifest.files if not (folder / name).is_file()])
    with pinned(copy := computation.location.readable(committed)):
        if committed.files == manifest.files and not copy.exists():
            write_manifest(folder, committed)
            publish_folder(folder, copy)
        computation.location.mirror(committed, kept=computation.stage.kept)
    make_space(copy.parent, 0)
    if folder != computation.published:
        shutil.rmtree(folder, ignore_errors=True)
    return committed
