"""The manifest: what a stage made, from what, and how to know that it is still whole.

Every artifact is a folder with ``manifest.json`` in it, written last: a folder without one was
never published. Its ``digest`` covers the results (weights, caches, images, ``metrics.json``) and
not what differs between two equal runs (:data:`NOT_HASHED`), so equal digests mean equal results.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rglcd.errors import InputError
from rglcd.store.file_names import check_names, check_plain_names
from rglcd.store.staging import write_text

MANIFEST = "manifest.json"

NOT_HASHED = frozenset({"timings.json", "speed.json", "index.html", "report.md"})
"""File names that no digest covers: they hold times, or a rendering of results that are digested elsewhere."""

LOOKS_FOLDER = "panel"
"""Of an arm: the record of what was seen of its training, which is the same for whoever looks. No digest covers its files."""

# Its files by their names: people name arms and scorers, and may call one of these as the folder is called.
_LOOKS = tuple(f"*/{LOOKS_FOLDER}/{name}" for name in ("about.json", "looks.jsonl", "*.png"))

_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSEALED = "0" * 64


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: lowercase hexadecimal SHA-256 and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a stage made. ``key`` names the computation (code version, sections, input digests); ``digest`` its result.

    ``lineage`` holds, for this stage and every one before it, its key, digest, version and sections:
    enough to say where a student came from when only its folder is left. ``store`` is the object-store folder in which
    the files lie (:class:`rglcd.store.artifacts.ArtifactStore`), None when they lie beside the manifest.
    """

    artifact: str
    stage: str
    version: int
    key: str
    digest: str
    inputs: dict[str, str]
    sections: dict[str, Any]
    files: dict[str, FileEntry]
    facts: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, dict[str, Any]] = field(default_factory=dict)
    store: str | None = None

    def matching(self, patterns: Collection[str]) -> list[str]:
        """The files whose names one of ``patterns`` (as a shell's) matches."""
        return [name for name in self.files if any(fnmatchcase(name, pattern) for pattern in patterns)]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, lowercase hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def scan(folder: Path) -> dict[str, FileEntry]:
    """Every regular file under ``folder`` but its manifest, by relative POSIX path, in sorted order.

    Raises :class:`InputError` on a link: an artifact is made of files.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise link_refused(path, "an artifact")
    return _entries(folder)


def link_refused(path: Path, of: str) -> InputError:
    """What to raise for a link at ``path`` within ``of``, which consists of files."""
    way_out = "if DVC made it: dvc config cache.type hardlink,copy, then dvc checkout --relink"
    return InputError(f"{path} is a link; {of} may hold regular files only ({way_out})")


def _entries(folder: Path) -> dict[str, FileEntry]:
    entries: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            entries[name] = FileEntry(sha256_of(path), path.stat().st_size)
    return entries


def results_digest(files: Mapping[str, FileEntry]) -> str:
    """One digest over the result files: names and contents, those of :data:`NOT_HASHED` and of :data:`LOOKS_FOLDER` left out."""
    return digest_of({name: entry.sha256 for name, entry in files.items() if _is_result(name)})


def _is_result(name: str) -> bool:
    return Path(name).name not in NOT_HASHED and not any(fnmatchcase(name, pattern) for pattern in _LOOKS)


def folder_digest(folder: Path) -> str:
    """The digest of a folder that has no manifest (a model folder): names and contents of its files, which may be links to such."""
    return digest_of({name: entry.sha256 for name, entry in _entries(folder).items()})


def manifest_text(manifest: Manifest) -> str:
    """``manifest`` as it is written: JSON with a seal, the digest of its own text with the seal's place left at zeros."""
    text = _json_text(asdict(manifest) | {"seal": _UNSEALED})
    return text.replace(_seal_line(_UNSEALED), _seal_line(_sha256(text)), 1)


def parse_manifest(text: str, *, where: str, made_by: str) -> Manifest:
    """The manifest that :func:`manifest_text` wrote as ``text``.

    Raises :class:`InputError` if one bit of it is another, or if it names a file that would not lie in the artifact's folder.
    """
    try:
        fields = json.loads(text)
        seal = fields.pop("seal")
        if _sha256(text.replace(_seal_line(seal), _seal_line(_UNSEALED), 1)) != seal:
            raise ValueError("its text is not what its seal says")
        files = parse_entries(fields.pop("files"))
        check_names(files, reserved=frozenset({MANIFEST}))
        check_plain_names([fields["artifact"]])
        return Manifest(files=files, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where} cannot be read as a manifest ({error}); make it again: rglcd run {made_by}") from None


def parse_entries(files: Any) -> dict[str, FileEntry]:
    """The file entries of a manifest or record, by name. ``ValueError`` or ``TypeError`` when one is none."""
    entries = {name: FileEntry(**entry) for name, entry in files.items()}
    for name, entry in entries.items():
        # A digest is part of the file's address in a store, and a size is what is read of it.
        if not _SHA256.fullmatch(entry.sha256) or type(entry.bytes) is not int or entry.bytes < 0:
            raise ValueError(f"the entry of {name!r} is no digest and size")
    return entries


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publish ``manifest`` in ``folder``: staged, then renamed, so that it is whole or absent."""
    write_text(folder / MANIFEST, manifest_text(manifest))


def read_manifest(folder: Path, *, made_by: str) -> Manifest:
    """The manifest of an artifact.

    Raises :class:`InputError` when the folder holds none, naming the stage that makes it, or when it cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is missing or unfinished; make it with: rglcd run {made_by}")
    try:
        text = path.read_bytes().decode()
    except ValueError as error:
        raise InputError(f"{path} cannot be read as a manifest ({error}); make it again: rglcd run {made_by}") from None
    return parse_manifest(text, where=str(path), made_by=made_by)


def verify_file(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with the file at ``path``, which ought to be ``entry``; None if nothing is. Size first: a cut file is found at once."""
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != entry.bytes:
        return f"has {size} bytes, not {entry.bytes}"
    if (found := sha256_of(path)) != entry.sha256:
        return f"has sha256 {found[:12]}…, not {entry.sha256[:12]}…"
    return None


def altered_files(folder: Path, manifest: Manifest, *, names: Iterable[str] | None = None) -> list[str]:
    """What is missing, cut or altered among ``names`` (default: all files): one line each, with what was expected."""
    named = manifest.files if names is None else names
    problems = ((name, verify_file(folder / name, manifest.files[name])) for name in named)
    return [f"{name} {problem}" for name, problem in problems if problem is not None]


def size_mismatches(folder: Path, manifest: Manifest) -> list[str]:
    """What is missing or cut among all files, without reading one of them."""
    problems = []
    for name, entry in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            problems.append(f"{name} is missing" if size is None else f"{name} has {size} bytes, not {entry.bytes}")
    return problems


def read_verified(folder: Path, *, made_by: str) -> Manifest:
    """The manifest of an artifact each of whose files is what it says.

    Raises :class:`InputError` as :func:`read_manifest` does, and naming the first file that is not.
    """
    manifest = read_manifest(folder, made_by=made_by)
    altered = altered_files(folder, manifest)
    if altered:
        raise InputError(f"{folder}: {altered[0]}; make it again: rglcd run {made_by}")
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON: staged, flushed to disk, then renamed over ``path``."""
    write_text(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _seal_line(seal: str) -> str:
    return f'\n "seal": "{seal}"'


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
