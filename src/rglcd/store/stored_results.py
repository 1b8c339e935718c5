"""The results that lie in a store's folder of one artifact, and the removal of one: what `rglcd clean --store` needs."""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.connection import found_below, open_url, with_retries
from rglcd.store.manifest import MANIFEST


@dataclass(frozen=True)
class StoredResult:
    """A result in a store, or what workers have put there of one. ``made_from`` are the keys of what it was made from."""

    uri: str
    key: str
    num_bytes: int
    last_change: float
    made_from: frozenset[str]

    def is_asked_for(self, keys: tuple[str, ...], *, older_than_days: float | None) -> bool:
        """Whether it is one of ``keys``, if any are given, and older than so many days, if that is given."""
        is_old = older_than_days is None or time.time() - self.last_change > older_than_days * 86400
        return is_old and (not keys or any(self.key.startswith(key) for key in keys))


def results_of(uri: str) -> list[StoredResult]:
    """The results in the artifact's folder ``uri``. Raises :class:`~rglcd.errors.TryAgain` when the store does not answer."""
    by_key: dict[str, list[dict[str, Any]]] = {}
    for name, details in found_below(uri).items():
        parts = PurePosixPath(name).parts
        if len(parts) > 1 and len(parts[0]) == 64:
            by_key.setdefault(parts[0], []).append(details)
    return [
        StoredResult(
            f"{uri}/{key}", key, sum(int(one["size"]) for one in found), max(map(_time_of, found)), _made_from(ArtifactStore(uri), key)
        )
        for key, found in sorted(by_key.items())
    ]


def remove_result(uri: str) -> None:
    """Remove a result: its manifest first, so that nobody finds one whose files are going."""
    filesystem, root = open_url(uri)
    if with_retries(lambda: filesystem.exists(f"{root}/{MANIFEST}"), what=uri):
        with_retries(lambda: filesystem.rm_file(f"{root}/{MANIFEST}"), what=uri)
    with_retries(lambda: filesystem.rm(root, recursive=True) if filesystem.exists(root) else None, what=uri)


def _made_from(store: ArtifactStore, key: str) -> frozenset[str]:
    manifest = store.made(key)
    if manifest is None:
        return frozenset()
    behind = {str(made["key"]) for made in manifest.lineage.values() if "key" in made}
    behind |= {str(read) for made in manifest.lineage.values() for read in made.get("inputs", {}).values()}
    return frozenset(behind - {key})


def _time_of(details: dict[str, Any]) -> float:
    """Seconds since the epoch: a store says when, a disk in seconds. What does not say is of now: it is not old."""
    changed = details.get("LastModified", details.get("mtime"))
    return changed.timestamp() if isinstance(changed, datetime) else float(changed) if changed is not None else time.time()
