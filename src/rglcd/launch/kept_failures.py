"""Why an attempt failed, kept beside the artifact: the newest as ``NAME.failure.json``, each one in the folder ``NAME.failures``."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rglcd.launch.failure import Failure
from rglcd.store.manifest import write_json

FAILURES_FOLDER = "RGLCD_FAILURES_FOLDER"
"""Variable that names, to a pod, the folder of its attempt: its ranks' last words, and NCCL's flight recorder of each rank."""


def failures_folder(artifact: Path) -> Path:
    """Where what is known of failed attempts lies: ``JOB.json`` is the launcher's, ``JOB/`` what its pods left."""
    return artifact.with_name(f"{artifact.name}.failures")


def keep_failure(content: Mapping[str, Any], path: Path | None, *, name: str) -> None:
    """Print the last lines of the rank that failed first, and keep what is known at ``path`` and beside it by the job's name."""
    for line in content["last_lines"]:
        print(f"  {line}", file=sys.stderr, flush=True)
    if path is None:
        return
    folder = failures_folder(path.with_name(path.name.removesuffix(".failure.json")))
    try:
        for each in (path, folder / f"{name}.json"):
            each.parent.mkdir(parents=True, exist_ok=True)
            write_json(each, {"job": name, **content})
    except OSError as error:  # a full disk, another user's folder: the run's own end is what counts
        print(f"rglcd: the reason could not be kept ({error})", file=sys.stderr, flush=True)


def forget_failure(path: Path | None) -> None:
    """Remove what an earlier attempt left at ``path``, if this user may."""
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def folder_of_this_attempt() -> Iterator[None]:
    """Within this context the folder that the environment names is there: NCCL makes none. One that nothing was left in goes."""
    folder = os.environ.get(FAILURES_FOLDER)
    if folder is None:
        yield
        return
    with suppress(OSError):  # a full or read-only claim: what matters is said elsewhere too
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for each in (Path(folder), Path(folder).parent):
            with suppress(OSError):
                each.rmdir()


def keep_last_words(failure: Failure) -> None:
    """In the folder of this attempt, by rank: all of it, where a termination message holds 4096 bytes and goes with its pod."""
    folder = os.environ.get(FAILURES_FOLDER)
    if folder is None:
        return
    with suppress(OSError):
        write_json(Path(folder) / f"rank-{failure.rank}.json", asdict(failure))
