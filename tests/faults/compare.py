"""Compare an artifact, byte for byte, with that of an unbroken run."""

from pathlib import Path

from rglcd.store.manifest import MANIFEST, NOT_HASHED, read_manifest, sha256_of
from rglcd.store.places import KEPT, WORK


def files_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file below ``folder``, hidden ones too, but for those that hold times or a rendering with times in it."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_HASHED | {MANIFEST})
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(paths)}


def assert_equal_artifacts(folder: Path, unbroken: Path) -> int:
    """The number of files of ``folder``, once each is found to be what ``unbroken`` has, with no stray one in it or beside it."""
    made, expected = files_of(folder), files_of(unbroken)
    strays, missing = sorted(made.keys() - expected.keys()), sorted(expected.keys() - made.keys())
    differing = [name for name in made.keys() & expected.keys() if made[name] != expected[name]]
    assert not strays, f"stray files: {', '.join(strays[:5])}"
    assert not missing, f"missing files: {', '.join(missing[:5])}"
    assert not differing, f"files that differ: {', '.join(sorted(differing)[:5])}"
    digests = [read_manifest(at, made_by="?").digest for at in (folder, unbroken)]
    assert digests[0] == digests[1], "the manifests' digests differ"
    left = (path for place in (".", WORK) for path in (folder.parent / place).glob("*" if place == WORK else ".*"))
    beside = sorted(path.name for path in left if path.name not in (WORK, KEPT, ".seen") and not _of_places(path))
    assert not beside, f"left beside it: {', '.join(beside[:5])}"
    return len(made)


def _of_places(path: Path) -> bool:
    """Whether it is a lock that stays, or what a killed reader left for `rglcd clean`: links to results."""
    return path.suffix == ".moving" or ".read-" in path.name
