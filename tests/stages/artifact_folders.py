"""What lies in artifacts' folders, compared before and after; and the stage ``shard``, the cheapest to run."""

from pathlib import Path

from rglcd.config import Sharding
from rglcd.stages.computation import TIMINGS
from rglcd.stages.run import Outcome, run_stage
from rglcd.store.manifest import MANIFEST, read_manifest
from rglcd.store.places import KEPT, WORK, Places
from tests.tiny_line import tiny_config

SHARDING = tiny_config().sharding


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every entry below ``folder``: inode, time of change, content."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, hidden ones too, but for what says how long it took."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in (TIMINGS, MANIFEST))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def hidden(root: Path) -> list[str]:
    """What runs left that is no result: work, and what was being written. Links that a killed reader left are `rglcd clean`'s."""
    work = (path.name for path in (root / WORK).glob("*") if path.suffix != ".moving" and ".read-" not in path.name)
    return sorted([*work, *(path.name for path in root.glob(".*") if path.name not in (WORK, KEPT, ".seen"))])


def shard(root: Path, sharding: Sharding = SHARDING) -> Outcome:
    return run_stage("shard", {"sharding": sharding}, {"source": root / "data", "shards": root / "shards"})


def staging_of(root: Path) -> Path:
    """Where the stage ``shard`` works until its artifact is published."""
    work = Places(root / "shards").work(read_manifest(root / "shards", made_by="shard").key)
    work.parent.mkdir(exist_ok=True)
    return work
