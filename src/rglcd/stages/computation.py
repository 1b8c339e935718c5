"""A computation: a stage, its validated sections, the inputs that it reads, and the key that names it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rglcd.config import Section, validate_section
from rglcd.errors import InputError
from rglcd.stages.outside import outside_digests, refuse_changed_rewards
from rglcd.stages.table import SOURCE, Stage, maker_of, may_be_absent, stage_named
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.artifacts import ArtifactLocation
from rglcd.store.files import is_remote
from rglcd.store.local_cache import pinned
from rglcd.store.local_copies import fetch_files, fetch_source, source_copy
from rglcd.store.manifest import Manifest, digest_of
from rglcd.store.remembered_files import folder_digest_of, memory_beside
from rglcd.store.staging import STAGING

Sections = Mapping[str, Mapping[str, Any] | Section]
"""Configuration sections by name, validated or as they were read."""

Artifacts = Mapping[str, Path | str]
"""Where each artifact is: a local folder, or an object store's (``s3://bucket/prefix``)."""


@dataclass(frozen=True)
class Input:
    """An artifact that is read: the folder to read it in, and its manifest (the source has none, but it may have a URL)."""

    folder: Path
    manifest: Manifest | None
    digest: str
    url: str | None = None


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
        return self.published.with_name(f".{self.published.name}.{self.key[:12]}{STAGING}")

    def other_staging(self) -> list[Path]:
        """Folders that unfinished computations of other keys left."""
        return [path for path in self.published.parent.glob(f".{self.published.name}.*{STAGING}") if path != self.staging]


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
    inputs = {artifact: _input(artifact, artifacts[artifact], memory=memory) for artifact in stage.inputs if artifact in artifacts}
    made_from = {artifact: read.digest for artifact, read in inputs.items()} | outside_digests(validated, published=location.folder)
    key = stage_key(stage, validated, made_from)
    return Computation(stage, validated, inputs, key, output, location, None if location.uri is None else ArtifactStore(location.uri))


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


@contextmanager
def inputs_at_hand(computation: Computation) -> Iterator[None]:
    """While what lies in a store is copied here; of what the stage streams, only the small JSON files that say what there is."""
    with ExitStack() as stack:
        for artifact, read in computation.inputs.items():
            if read.url is not None:
                stack.enter_context(pinned(read.folder))
                fetch_source(read.url, read.folder)
            elif read.manifest is not None and read.manifest.store is not None:
                stack.enter_context(pinned(read.folder))
                suffix = ".json" if artifact in computation.stage.streams else ""
                fetch_files(read.folder, read.manifest, wanted=partial(_ends_with, suffix))
        yield


def _ends_with(suffix: str, name: str) -> bool:
    return name.endswith(suffix)


def _validated(name: str, sections: Sections) -> Section:
    if name not in sections:
        raise InputError(f"section {name!r} is missing")
    values = sections[name]
    return values if isinstance(values, Section) else validate_section(name, values)


def _input(artifact: str, given: Path | str, *, memory: Path) -> Input:
    if artifact == SOURCE:
        return _source(given, memory=memory)
    location = ArtifactLocation.of(artifact, given)
    manifest = location.read(made_by=maker_of(artifact).name)
    refuse_changed_rewards(manifest)
    return Input(location.readable(manifest), manifest, manifest.digest)


def _source(given: Path | str, *, memory: Path) -> Input:
    if is_remote(given):
        copy, digest = source_copy(str(given))
        return Input(copy, None, digest, url=str(given))
    folder = Path(given)
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the source folder (for the toy: rglcd toy data {folder})")
    return Input(folder, None, folder_digest_of(folder, memory=memory))
