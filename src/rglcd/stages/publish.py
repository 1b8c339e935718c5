"""What a computation has published, and how what it made is published: in its folder, or in an object store."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rglcd.errors import InputError
from rglcd.stages.computation import TIMINGS, Computation, Input, linked
from rglcd.stages.table import WHOLE, maker_of
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.local_cache import make_space, pinned
from rglcd.store.local_copies import fetch_files
from rglcd.store.manifest import MANIFEST, Manifest, altered_files, read_manifest, results_digest, scan, write_json, write_manifest
from rglcd.store.places import description_of, manifest_in
from rglcd.store.shard_tasks import take_recorded_elsewhere
from rglcd.store.staging import STAGING, publish_folder


def is_finished(computation: Computation) -> bool:
    """Whether the work is done, and only its publication is not."""
    return (computation.staging / MANIFEST).is_file()


def finish(computation: Computation, facts: Mapping[str, Any], *, read: Mapping[str, Path], seconds: float) -> None:
    """Write the manifest of what the stage made; ``facts`` are the stage's, ``seconds`` the time that it took.

    ``read`` are the opened inputs.
    """
    for leftover in computation.staging.rglob(f".*{STAGING}"):
        # A kill in the middle of a write leaves the staging file; it was never part of the work.
        leftover.unlink()
    write_json(computation.staging / TIMINGS, _timings(computation, read) | {computation.stage.name: round(seconds, 3)})
    write_manifest(computation.staging, _manifest(computation, facts))


def publish(computation: Computation) -> Manifest:
    """Put the work folder, whole with its manifest, in force; what was in force is kept."""
    description_of(computation.staging).unlink(missing_ok=True)
    if computation.store is not None:
        manifest = read_manifest(computation.staging, made_by=computation.stage.name)
        return _publish_to(computation, computation.store, computation.staging, manifest)
    computation.location.places.put_in_force(computation.staging)
    return read_manifest(computation.published, made_by=computation.stage.name)


def is_done(computation: Computation) -> bool:
    """Whether :func:`standing` would find the result, or the work is done and only its publication is not. Moves nothing."""
    # In the order in which a leader moves it: what is moved between two looks is seen by the later one.
    return is_finished(computation) or _result(computation) is not None or _made_in_store(computation) is not None


def standing(computation: Computation) -> Manifest | None:
    """The manifest of the result, in force, if it was made before and no file of it is missing or cut.

    A result that is kept is put in force; one that was made before there was a store goes there; one that lies in the store is
    pointed to.
    """
    found, store = _result(computation), computation.store
    if found is not None:
        folder, manifest = found
        if folder != computation.published:
            computation.location.places.put_in_force(folder)
        if store is None or manifest.store == store.result(computation.key):
            return manifest
        if manifest.store is None:
            return _publish_to(computation, store, computation.published, manifest)
    made = _made_in_store(computation)
    if made is None or store is None:
        return None
    store.point_to(made)
    computation.location.mirror(made, kept=computation.stage.kept)
    return made


def _result(computation: Computation) -> tuple[Path, Manifest] | None:
    """The result in this machine's folders, if it is whole; of one whose files lie in the store, if it is still there."""
    for folder, manifest in computation.location.places.results(computation.key):
        in_store = computation.store is not None and manifest.store == computation.store.result(computation.key)
        if _is_whole(computation, folder, manifest) and not (in_store and _made_in_store(computation) is None):
            return folder, manifest
    return None


def _made_in_store(computation: Computation) -> Manifest | None:
    return None if computation.store is None else computation.store.made(computation.key)


@contextmanager
def previous_result(computation: Computation) -> Iterator[Path | None]:
    """The result in force, which is another's, its files here if the stage may take parts over from it."""
    manifest = manifest_in(computation.published)
    if manifest is None or computation.output not in computation.stage.reuses:
        yield None
        return
    with ExitStack() as stack:
        folder = computation.location.readable(manifest)
        if manifest.store is not None:
            stack.enter_context(pinned(folder))
            fetch_files(folder, manifest, wanted=lambda _: True)
        places = computation.location.places if manifest.store is None else None
        yield stack.enter_context(linked(Input(folder, manifest, WHOLE, manifest.digest, places), manifest))


def _is_whole(computation: Computation, folder: Path, manifest: Manifest) -> bool:
    """Whether every file that should lie in the result's folder does, with its size."""
    names: Collection[str] = manifest.files if manifest.store is None else manifest.matching(computation.stage.kept)
    paths = {folder / name: manifest.files[name].bytes for name in names}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _timings(computation: Computation, folders: Mapping[str, Path]) -> dict[str, float]:
    """Seconds of every stage behind the inputs."""
    merged: dict[str, float] = {}
    for artifact, read in computation.inputs.items():
        if read.manifest is not None and TIMINGS in read.manifest.files:
            problems = altered_files(folders[artifact], read.manifest, names=[TIMINGS])
            if problems:
                raise InputError(f"{read.folder}: {problems[0]}; make it again: rglcd run {maker_of(artifact).name}")
            merged |= json.loads((folders[artifact] / TIMINGS).read_text(encoding="utf-8"))
    return merged


def _manifest(computation: Computation, facts: Mapping[str, Any]) -> Manifest:
    files = dict(sorted((take_recorded_elsewhere(computation.staging) | scan(computation.staging)).items()))
    digest = results_digest(files)
    sections = {name: computation.sections[name].model_dump(mode="json") for name in computation.stage.keyed}
    stage, read = computation.stage, {name: given.manifest for name, given in computation.inputs.items() if given.manifest is not None}
    lineage: dict[str, dict[str, Any]] = {}
    for manifest in read.values():
        lineage |= manifest.lineage
    for manifest in read.values():  # what was read itself goes before what something that was read descends from
        lineage |= {manifest.stage: manifest.lineage[manifest.stage]} if manifest.stage in manifest.lineage else {}
    lineage[stage.name] = {
        "version": stage.version,
        "key": computation.key,
        "digest": digest,
        "inputs": {name: manifest.key for name, manifest in read.items()},
        "sections": sections,
        "facts": dict(facts),
    }
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
        shutil.rmtree(folder, ignore_errors=True)  # its own work, every file of which the store has
    return committed
