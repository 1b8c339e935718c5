"""The code of a reward that another installed package offers: which distribution and version it is, and a digest of its files."""

from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.extras import install_command
from rglcd.store.manifest import digest_of, sha256_of

ENTRY_POINTS: Final = "rglcd.rewards"
"""The group in which an installed package offers loaders of its own: ``loader(folder | None, *, dtype, device)``."""

READER: Final = "rapidocr"
"""The package that reads text in pictures, which is how its distribution is called too."""

READERS_EXTRA: Final = "ocr"


def offered_reward(name: str) -> EntryPoint:
    """The entry point that an installed package offers as ``name``. Raises :class:`InputError`."""
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise InputError(f"no installed package offers the reward {name!r} in the entry point group {ENTRY_POINTS}; there are: {known}")
    return offered[name]


def code_of(name: str) -> dict[str, str]:
    """What tells one code of the reward ``name`` from another: ``distribution``, ``version``, ``sha256`` of its Python files.

    The files are those that the installer recorded (PyPA's RECORD: https://packaging.python.org/en/latest/specifications/
    recording-installed-packages/) where the reward's module is among them; a data file counts by the digest recorded of it. Of
    an editable install, or of a folder on the path, they are those below the reward's package, or the module alone. None of it is
    imported. What the package itself depends on is not looked at. Raises :class:`InputError`.
    """
    entry = offered_reward(name)
    origin, roots = _sources(entry)
    files = _recorded(entry, origin) or dict(_below(roots))
    distribution, version = ("", "") if entry.dist is None else (entry.dist.name, entry.dist.version)
    return {"distribution": distribution, "version": version, "sha256": digest_of(files)}


def code_of_reader() -> dict[str, str]:
    """The same of the package that reads text: all of its files as they are on disk, models included. Raises :class:`InputError`."""
    root = reader_folder()
    files = {path.relative_to(root).as_posix(): sha256_of(path) for path in sorted(root.rglob("*")) if _is_content(path)}
    return {"distribution": READER, "version": version(READER), "sha256": digest_of(files)}


def reader_folder() -> Path:
    """Where the package that reads text is installed; it is not imported. Raises :class:`InputError` where it is not."""
    found = _spec(READER)
    if found is None or found.origin is None:
        raise InputError(f"kind ocr reads with {READER}, which is not installed: {install_command(READERS_EXTRA)}")
    return Path(found.origin).parent


def _is_content(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc"


def in_words(code: Mapping[str, str]) -> str:
    """``my-reward 0.2 (1a2b3c4d5e6f)``."""
    return f"{code['distribution']} {code['version']} ({code['sha256'][:12]})"


def _sources(entry: EntryPoint) -> tuple[Path, list[Path]]:
    """The file of the reward's module or package, and the folders or files that hold the code it lies in."""
    parts = entry.module.split(".")
    found: ModuleSpec | None = None
    for length in range(1, len(parts) + 1):
        # Of a namespace package nothing is run when what it holds is looked for; of any other the search ends at the package itself.
        found = _spec(".".join(parts[:length]))
        if found is None:
            raise InputError(f"the reward {entry.name!r} is {entry.value}, and no module {'.'.join(parts[:length])} is installed")
        if found.origin is not None:
            break
    if found is None or found.origin is None:
        raise InputError(f"the reward {entry.name!r} is {entry.value}, and {entry.module} is a folder without code")
    origin = Path(found.origin)
    if found.submodule_search_locations is not None:
        return origin, [Path(folder) for folder in found.submodule_search_locations]
    # A module in a namespace package lies among its siblings; one at the top is alone, but for those that its distribution lists.
    return origin, [origin.parent] if "." in found.name else [origin, *_listed_modules(entry, origin)]


def _spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):
        return None


def _listed_modules(entry: EntryPoint, origin: Path) -> list[Path]:
    """What setuptools lists beside the module ``origin`` as the top of the same distribution."""
    listed = (entry.dist.read_text("top_level.txt") or "").split() if entry.dist is not None else []
    beside = [origin.parent / name for name in listed] + [origin.parent / f"{name}.py" for name in listed]
    return [path for path in beside if path != origin and (path.is_file() or (path / "__init__.py").is_file())]


def _recorded(entry: EntryPoint, origin: Path) -> dict[str, str]:
    """Digests of the files in the distribution's RECORD, Python files as they are on disk; none if it leaves ``origin`` out."""
    files = entry.dist.files if entry.dist is not None else None
    if not files or origin.resolve() not in {Path(str(file.locate())).resolve() for file in files}:
        return {}
    digests = {}
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".py" and path.is_file():
            digests[file.as_posix()] = sha256_of(path)
        elif file.hash is not None and not file.parts[0].endswith(".dist-info"):
            digests[file.as_posix()] = file.hash.value
    return digests


def _below(roots: list[Path]) -> Iterator[tuple[str, str]]:
    for root in roots:
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            yield path.relative_to(root.parent).as_posix(), sha256_of(path)
