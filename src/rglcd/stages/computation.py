"""A computation: a stage, its validated sections, the inputs that it reads, and the key that names it.

The key is a digest of the stage, its code version, its sections, and the digests of the **parts** of its inputs that the table says
it reads (:mod:`rglcd.stages.table`): of an artifact those in its manifest, of the source those of its files. What else lies in an
input is not there for the stage: it is given a folder of links to these files, with a manifest of them alone. So a file that the table
does not name cannot be opened, what the stage derives from that manifest follows the parts, and another run that puts a result of its
own in force meanwhile moves nothing from under it.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

from rglcd.config import Config, Section, validate_section
from rglcd.errors import InputError, TryAgain
from rglcd.stages.outside import outside_digests, refuse_changed_rewards
from rglcd.stages.table import SOURCE, WHOLE, Parts, Stage, is_read, maker_of, may_be_absent, parts_read, parts_read_unkeyed, stage_named
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.artifacts import ArtifactLocation
from rglcd.store.files import is_remote
from rglcd.store.local_cache import pinned
from rglcd.store.local_copies import fetch_files, fetch_source, source_copy
from rglcd.store.manifest import Manifest, digest_of, link_refused, results_digest, write_manifest
from rglcd.store.places import Places, folder_of_links, link_file
from rglcd.store.remembered_files import entries_of, memory_beside

Sections = Mapping[str, Mapping[str, Any] | Section]
"""Configuration sections by name, validated or as they were read."""

TIMINGS: Final = "timings.json"
"""The file of every artifact that holds the seconds of each stage behind it. No digest covers it, so it is read with any part."""

Artifacts = Mapping[str, Path | str]
"""Where each artifact is: a local folder, or an object store's (``s3://bucket/prefix``)."""


@dataclass(frozen=True)
class Input:
    """An artifact that is read: the folder that it lies in, and its manifest (the source has none, but it may have a URL).

    ``digest`` is that of the ``parts`` of it that are read; ``unkeyed`` parts are read too, and no digest covers them.
    """

    folder: Path
    manifest: Manifest | None
    parts: Parts
    digest: str
    places: Places | None = None
    """Where other results of the artifact lie, if it lies in a folder."""
    url: str | None = None
    unkeyed: Parts = ()

    def holds(self, name: str) -> bool:
        """Whether the stage finds the file called ``name``."""
        return is_read(name, self.parts) or is_read(name, self.unkeyed) or name == TIMINGS


@dataclass(frozen=True)
class Computation:
    """A stage with everything it was given, validated, and the key that names the computation.

    ``store`` receives the shard tasks that are finished and what is published, if the output's bytes lie in one.
    """

    stage: Stage
    sections: dict[str, Section]
    inputs: dict[str, Input]
    key: str
    output: str
    location: ArtifactLocation
    store: ArtifactStore | None

    @property
    def published(self) -> Path:
        """The artifact's folder."""
        return self.location.folder

    @property
    def staging(self) -> Path:
        """The folder in which the stage works until what it made is published; named after the key, so that it goes on there."""
        return self.location.places.work(self.key)


def plan(name: str, sections: Sections, artifacts: Artifacts) -> Computation:
    """The computation that stage ``name`` is under ``sections``, given what ``artifacts`` holds. Raises :class:`InputError`."""
    stage = stage_named(name)
    validated = {section: _validated(section, sections) for section in stage.sections}
    for artifact in stage.inputs:
        if artifact not in artifacts and not may_be_absent(artifact):
            raise InputError(f"{name} reads {artifact}: say which folder it is in")
    (output,) = stage.outputs
    location = ArtifactLocation.of(output, artifacts[output])
    memory = memory_beside(location.folder)
    given = {artifact: artifacts[artifact] for artifact in stage.inputs if artifact in artifacts}
    inputs = _inputs(stage, validated, given, memory=memory)
    made_from = {artifact: read.digest for artifact, read in inputs.items()} | outside_digests(validated, published=location.folder)
    key = stage_key(stage, validated, made_from)
    return Computation(stage, validated, inputs, key, output, location, None if location.uri is None else ArtifactStore(location.uri))


def stage_key(stage: Stage, sections: Mapping[str, Section], made_from: Mapping[str, str]) -> str:
    """The name of a computation: stage, code version, the configuration that enters it, and the digests of what it reads."""
    return digest_of(
        {
            "stage": stage.name,
            "version": stage.version,
            "sections": {name: section.model_dump(mode="json") for name, section in sections.items() if name in stage.keyed},
            "inputs": dict(made_from),
        }
    )


@contextmanager
def opened_inputs(computation: Computation) -> Iterator[dict[str, Path]]:
    """The folder of each input, while it holds what the computation reads of it and nothing else.

    What lies in a store is copied here; of what the stage streams, only the small JSON files that say what there is.
    """
    with ExitStack() as stack:
        folders = {}
        for artifact, read in computation.inputs.items():
            streams = artifact in computation.stage.streams
            if read.url is not None:
                stack.enter_context(pinned(read.folder))
                fetch_source(read.url, read.folder, wanted=partial(is_read, parts=read.parts))
            elif read.manifest is not None and read.manifest.store is not None:
                stack.enter_context(pinned(read.folder))
                fetch_files(read.folder, read.manifest, wanted=_fetched_first(read, streams=streams))
            folders[artifact] = read.folder
            if read.manifest is not None and not (streams and read.manifest.store is not None):
                folders[artifact] = stack.enter_context(linked(read, read.manifest))
                stack.enter_context(_saying_real_paths(computation.stage, artifact, shown=folders[artifact], real=read.folder))
        yield folders


def _fetched_first(read: Input, *, streams: bool) -> Callable[[str], bool]:
    suffix = ".json" if streams else ""
    return lambda name: name.endswith(suffix) and read.holds(name)


@contextmanager
def linked(read: Input, manifest: Manifest) -> Iterator[Path]:
    """A folder that is an artifact of the parts that are read, and has no other file."""
    files = {name: entry for name, entry in manifest.files.items() if read.holds(name)}
    with folder_of_links(beside=read.folder) as folder:
        with nullcontext() if read.places is None else read.places.at_rest():
            # Not where it was when the key was computed, if another run has put a result of its own in force since.
            found = [] if read.places is None else [place for place, there in read.places.results(manifest.key) if there == manifest]
            for name in files:
                link_file((found or [read.folder])[0] / name, folder / name)
        write_manifest(folder, replace(manifest, files=files, digest=read.digest, store=None))
        yield folder


@contextmanager
def _saying_real_paths(stage: Stage, artifact: str, *, shown: Path, real: Path) -> Iterator[None]:
    """In what goes wrong within, name the artifact's folder, not that of the links; say it of a file that the table does not name."""
    try:
        yield
    except OSError as error:
        name = str(error.filename)
        if name.startswith(f"{shown}/") and os.path.lexists(real / Path(name).relative_to(shown)):
            undeclared = Path(name).relative_to(shown)
            raise AssertionError(f"{stage.name} reads {undeclared} of {artifact}, which the stage table does not say") from error
        raise
    except (InputError, TryAgain) as error:
        error.args = (str(error).replace(str(shown), str(real)),)
        raise


def _validated(name: str, sections: Sections) -> Section:
    if name not in sections:
        raise InputError(f"section {name!r} is missing")
    values = sections[name]
    return values if isinstance(values, Section) else validate_section(name, values)


def _inputs(stage: Stage, sections: Mapping[str, Section], given: Artifacts, *, memory: Path) -> dict[str, Input]:
    """The inputs, with the parts that ``stage`` reads of them. Raises :class:`InputError`."""
    locations = {artifact: ArtifactLocation.of(artifact, given[artifact]) for artifact in given if artifact != SOURCE}
    found = {artifact: location.read(made_by=maker_of(artifact).name) for artifact, location in locations.items()}
    for _, manifest in found.values():
        refuse_changed_rewards(manifest)
    known = cast(Config, _KnownSections(stage, sections, [manifest for _, manifest in found.values()]))
    parts, unkeyed = parts_read(stage, known), parts_read_unkeyed(stage, known)
    inputs = {}
    for artifact in given:
        if artifact == SOURCE:
            inputs[artifact] = _source(given[artifact], parts[artifact], memory=memory)
        else:
            folder, manifest = found[artifact]
            digest = digest_of_parts(manifest, parts[artifact], where=folder)
            places = locations[artifact].places if manifest.store is None else None
            digest_of_parts(manifest, unkeyed[artifact], where=folder)  # are they there?
            inputs[artifact] = Input(folder, manifest, parts[artifact], digest, places, unkeyed=unkeyed[artifact])
    return inputs


def digest_of_parts(manifest: Manifest, parts: Parts, *, where: Path) -> str:
    """The digest of what ``parts`` name of an artifact's files, which is its own when they name all.

    Raises :class:`InputError` for a part that it has no file of.
    """
    for part in parts:
        if not any(is_read(name, (part,)) for name in manifest.files) and part != ".":
            raise InputError(f"{where} has no {part}; make it again: rglcd run {manifest.stage}")
    return (
        manifest.digest if parts == WHOLE else results_digest({name: one for name, one in manifest.files.items() if is_read(name, parts)})
    )


class _KnownSections:
    """What a computation knows of the configuration: its own sections, and those that its inputs were made with.

    Where two inputs came from one stage by two configurations, what an input was made with itself goes before what it descends from.
    """

    def __init__(self, stage: Stage, sections: Mapping[str, Section], manifests: Sequence[Manifest]) -> None:
        self._stage, self._sections, self._behind = stage, sections, dict[str, Any]()
        for manifest in manifests:
            for made in manifest.lineage.values():
                self._behind |= made["sections"]
        for manifest in manifests:
            self._behind |= manifest.sections

    def __getattr__(self, name: str) -> Section:
        if name in self._sections:
            return self._sections[name]
        if name not in self._behind:
            raise InputError(f"what {self._stage.name} reads was made without section {name!r}; make it again: rglcd run all")
        return validate_section(name, self._behind[name])


def _source(given: Path | str, parts: Parts, *, memory: Path) -> Input:
    for part in parts:
        if PurePosixPath(part).is_absolute() or ".." in PurePosixPath(part).parts:
            raise InputError(f"{part} does not lie in the source folder {given}")
    if is_remote(given):
        copy, digest = source_copy(str(given), wanted=lambda name: is_read(name, parts))
        return Input(copy, None, parts, digest, url=str(given))
    folder = Path(given)
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the source folder (for the toy: rglcd toy data {folder})")
    return Input(folder, None, parts, source_digest(folder, parts, memory=memory))


def refuse_changed_source(computation: Computation) -> None:
    """Raise :class:`TryAgain` if a source folder no longer holds what the key says, for then nobody knows what was read of it."""
    memory = memory_beside(computation.location.folder)
    for read in computation.inputs.values():
        if read.manifest is None and read.url is None:
            with suppress(FileNotFoundError):  # gone as it was looked at
                if source_digest(read.folder, read.parts, memory=memory) == read.digest:
                    continue
            name = computation.stage.name
            raise TryAgain(f"{read.folder} changed while {name} read it; leave it as it is, and run the same command again")


def source_digest(folder: Path, parts: Parts, *, memory: Path) -> str:
    """The digest of what lies in ``parts`` of a source folder: names and contents. Raises :class:`InputError` on a link."""
    digests: dict[str, str] = {}
    for part in parts:
        place, files = folder / part, dict[str, Path]()
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_symlink():
                raise link_refused(path, "a source folder")
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = path
        digests |= {name: entry.sha256 for name, entry in entries_of(files, of=place, memory=memory).items()}
    return digest_of(digests)
