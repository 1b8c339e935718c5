"""What travels between Kubeflow tasks: a small reference to an artifact, never its bytes.

Kubeflow's launcher downloads every input artifact into the pod; the bytes therefore stay in a store of their own.
"""

import json
from pathlib import Path

from rglcd.errors import InputError
from rglcd.stages.table import maker_of
from rglcd.store.artifacts import ArtifactLocation, at_key
from rglcd.store.files import is_remote
from rglcd.store.manifest import Manifest, write_json


def write_reference(path: Path, manifest: Manifest, *, at: Path | str) -> None:
    """Write a reference to what a stage published ``at`` a folder or a store's folder: artifact, location with its key, digest.

    The key makes it this run's result, whatever another run publishes there meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"artifact": manifest.artifact, "uri": str(at_key(at, manifest.key)), "digest": manifest.digest})


def read_reference(path: Path, *, artifact: str) -> Path | str:
    """The location that a reference to ``artifact`` names, with the result's key.

    Raises :class:`InputError` when it is of another artifact, or when the result is not there, or is another.
    """
    try:
        reference = json.loads(path.read_text(encoding="utf-8"))
        named, location, digest = reference["artifact"], str(reference["uri"]), reference["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a reference to an artifact; start the pipeline again") from None
    if named != artifact:
        raise InputError(f"{path} refers to {named!r}, not to {artifact!r}")
    _, manifest = ArtifactLocation.of(artifact, location).read(made_by=maker_of(artifact).name)
    if manifest.digest != digest:
        raise InputError(f"{location} was made again since this run made it, and is not the same; start the pipeline again")
    return location if is_remote(location) else Path(location)


def artifact_location(store: str, artifact: str) -> Path | str:
    """Where ``artifact`` lies in ``store``, a folder or a URL."""
    return f"{store.rstrip('/')}/{artifact}" if is_remote(store) else Path(store) / artifact


def source_folder(reference: str) -> Path | str:
    """The location in ``uri@md5``: the md5, which ``data.dvc`` names, makes Kubeflow's cache see a change of content."""
    uri, _, md5 = reference.rpartition("@")
    if not uri or not md5:
        raise InputError(f"source is {reference!r}; it takes the form uri@md5, as data.dvc names it")
    return uri if is_remote(uri) else Path(uri)
