"""What there is in a folder of artifacts, by key: in force, kept, under way; and its removal, which happens nowhere else."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from shutil import rmtree
from typing import Any, Final
from uuid import uuid4

from rglcd.config import Config
from rglcd.models.loading import read_json
from rglcd.rewards.installed_code import in_words
from rglcd.stages.table import STAGES
from rglcd.store.locks import try_exclusive_lock
from rglcd.store.manifest import Manifest
from rglcd.store.places import KEPT, LOCK, MAKING, WORK, Places, description_of, manifest_in

_ARTIFACTS: Final = tuple(output for stage in STAGES for output in stage.outputs)
_OLD_STAGING: Final = re.compile(rf"\.({'|'.join(_ARTIFACTS)})\.([0-9a-f]{{12}}\.staging|replaced|mirror)")
"""What killed processes left before results lay by key."""


class State(StrEnum):
    """What a folder is."""

    IN_FORCE = "in force"
    KEPT = "kept"
    UNDER_WAY = "under way"
    LEFT_OVER = "left over"


@dataclass(frozen=True)
class Found:
    """A folder: a result, or work on one. ``sections`` are those that it was made with, as far as anything says.

    ``origins`` say what it was made from besides settings: :func:`origins_of`.
    """

    artifact: str
    folder: Path
    state: State
    key: str
    sections: Mapping[str, Any]
    origins: Mapping[str, Any]
    num_bytes: int
    last_change: float

    @property
    def is_held(self) -> bool:
        """Whether a living process of this machine works there."""
        if self.state not in (State.UNDER_WAY, State.LEFT_OVER):
            return False
        return any(_is_locked(lock) for lock in _locks_of(self.folder))

    @property
    def in_words(self) -> str:
        """What it is, and whether a process uses it: `.work` holds the links too by which stages read their inputs."""
        if not self.is_held:
            return self.state.value
        return "being worked on" if self.state is State.UNDER_WAY else "being read"


def results_in(artifacts: Path) -> list[Found]:
    """Everything that stages have put in the folder ``artifacts``: by artifact, results in force first, then the latest."""
    order = {name: place for place, name in enumerate(_ARTIFACTS)}
    found = [*_in_force(artifacts), *_kept(artifacts), *_under_way(artifacts)]
    return sorted(
        found, key=lambda one: (order.get(one.artifact, len(order)), list(State).index(one.state), -one.last_change, one.folder.name)
    )


def _in_force(artifacts: Path) -> Iterator[Found]:
    for name in _ARTIFACTS:
        if (manifest := manifest_in(artifacts / name)) is not None:
            yield _result(name, artifacts / name, State.IN_FORCE, manifest)


def _kept(artifacts: Path) -> Iterator[Found]:
    for folder in sorted((artifacts / KEPT).glob("*/")):
        manifest = manifest_in(folder)
        if manifest is None:
            yield _folder(folder.name.partition("-")[0], folder, State.LEFT_OVER)
        else:
            yield _result(folder.name.partition("-")[0], folder, State.KEPT, manifest)


def _under_way(artifacts: Path) -> Iterator[Found]:
    for folder in sorted((artifacts / WORK).glob("*/")):
        name, _, key = folder.name.partition("-")
        record = description_of(folder)
        if "." not in folder.name:
            yield _folder(name, folder, State.UNDER_WAY, key=key, sections=read_json(record) if record.is_file() else {})
        else:  # links of a process that reads or was killed, or what `rglcd clean` was killed at
            yield _folder(name.partition(".")[0], folder, State.LEFT_OVER)
    for folder in sorted(artifacts.glob(".*/")):
        if old := _OLD_STAGING.fullmatch(folder.name):
            yield _folder(old[1], folder, State.LEFT_OVER)


def _result(name: str, folder: Path, state: State, manifest: Manifest) -> Found:
    behind: dict[str, Any] = {}
    for made in manifest.lineage.values():
        behind |= made["sections"]
    return _folder(name, folder, state, key=manifest.key[:12], sections=behind | manifest.sections, origins=origins_of(manifest))


def _folder(
    name: str,
    folder: Path,
    state: State,
    *,
    key: str = "",
    sections: Mapping[str, Any] | None = None,
    origins: Mapping[str, Any] | None = None,
) -> Found:
    sizes, times = [0], [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # a living process removed it
            continue
        sizes.append(status.st_size if path.is_file() else 0)
        times.append(status.st_mtime)
    return Found(name, folder, state, key, sections or {}, origins or {}, sum(sizes), max(times))


def origins_of(manifest: Manifest) -> dict[str, Any]:
    """What a result was made from that no setting says, in words: the digest of each model, the code of each own reward, the shards'."""
    prepared = manifest.lineage.get("prepare", {}).get("facts", {})
    rewards = {name: in_words(found["code"]) for name, found in prepared.get("rewards", {}).items()}
    models = {role: str(digest)[:12] for role, digest in prepared.get("models", {}).items()}
    shards = {"shards": str(manifest.lineage["shard"]["digest"])[:12]} if "shard" in manifest.lineage else {}
    return {"prepared": models | rewards, **shards}


def differences(found: Found, config: Config, in_force: Found | None) -> list[str]:
    """What a result was made with where the configuration in force says something else: a line for each key.

    And what it was made from where ``in_force``, the artifact's result in force, was made from something else.
    """
    ours = {section: config.section(section).model_dump(mode="json") for section in found.sections}
    lines = [f"{key} {theirs}, now {mine}" for key, theirs, mine in changed_settings(found.sections, ours)]
    if in_force is not None and found.origins:
        lines += [f"{key} {theirs}, in force {mine}" for key, theirs, mine in changed_settings(found.origins, in_force.origins)]
    return lines


def changed_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The keys, as ``section.key``, in which two configurations differ, and both values in words."""
    changed = []
    for section in {**one, **other}:
        theirs, ours = _flat(one.get(section, {}), section), _flat(other.get(section, {}), section)
        for key in sorted(theirs.keys() | ours.keys()):
            if theirs.get(key) != ours.get(key):
                changed.append((key, _in_words(theirs, key), _in_words(ours, key)))
    return changed


def _flat(values: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}")
    return flat


def _in_words(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "absent"


def removable(found: Found, *, keys: tuple[str, ...], older_than_days: float | None) -> bool:
    """Whether `rglcd clean` may remove it: nothing in force, nothing that a living process holds; of the rest what was asked for."""
    if found.state is State.IN_FORCE or found.is_held:
        return False
    is_old = older_than_days is None or time.time() - found.last_change > older_than_days * 86400
    return is_old and (not keys or any(found.key and (found.key.startswith(key) or key.startswith(found.key)) for key in keys))


def remove(found: Found) -> bool:
    """Remove it, unless a process has begun to use it since; it is gone from its place at once, however long its bytes take."""
    artifacts = found.folder.parent.parent if found.folder.parent.name in (KEPT, WORK) else found.folder.parent
    gone = artifacts / WORK / f"{found.artifact}.gone-{uuid4().hex[:8]}"
    with ExitStack() as stack:
        stack.enter_context(Places(artifacts / found.artifact).at_rest())
        locks = _locks_of(found.folder)
        if not all(stack.enter_context(try_exclusive_lock(lock)) for lock in locks) or not found.folder.is_dir():
            return False
        found.folder.rename(gone)
        for path in (description_of(found.folder), *locks):
            path.unlink(missing_ok=True)
    rmtree(gone)
    return True


def _locks_of(folder: Path) -> tuple[Path, Path]:
    """What its leader locks, and all who work in it."""
    return folder.with_name(f"{folder.name}{MAKING}"), folder.with_name(f"{folder.name}{LOCK}")


def _is_locked(lock: Path) -> bool:
    if not lock.exists():
        return False
    with try_exclusive_lock(lock) as is_mine:
        return not is_mine
