"""Small objects of an object store (manifests, records): read, written, created once, listed.

Whatever is written is read back and compared before anyone relies on it: stores have lost parts of an upload without an error
(mlcommons/storage issue 593), and neither its size nor its metadata showed it.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from rglcd.errors import TryAgain
from rglcd.store.connection import attempts, found_below, is_local, open_url, with_retries
from rglcd.store.probe import open_to_write
from rglcd.store.staging import STAGING, flush, staging_file


def read_object(uri: str) -> bytes | None:
    """The whole object at ``uri``, or None if there is none."""
    filesystem, path = open_url(uri)
    try:
        content: bytes = with_retries(lambda: filesystem.cat_file(path), what=uri)
    except FileNotFoundError:
        return None
    return content


def write_object(uri: str, content: bytes) -> None:
    """Put a small object at ``uri``, in place of what is there. Raises :class:`TryAgain` when it never reads as it was written."""
    filesystem, path, _ = open_to_write(uri)
    found: bytes | None = None
    for _ in attempts():
        with_retries(lambda: _replace(filesystem, path, content), what=uri)
        if (found := read_object(uri)) == content:
            return
    summary = "nothing" if found is None else f"{len(found)} bytes"
    raise TryAgain(f"{uri} was written and reads as something else ({summary}); run the same command again")


def create_object(uri: str, content: bytes, *, is_whole: Callable[[bytes], bool]) -> bytes:
    """Put ``content`` at ``uri`` unless something whole is there already; returns what is there afterwards.

    On S3 this is one conditional request (``If-None-Match: *``): of any number of writers exactly one wins, and all
    get the same answer. A writer whose answer was lost on the way finds its own content there. What a store has damaged
    is of no use to anybody, and would stand in the way for ever: it is replaced. Where a store has no such request
    (:mod:`rglcd.store.probe`), it is looked first, which is as good for one writer.
    """
    filesystem, path, abilities = open_to_write(uri)
    for _ in attempts():
        with suppress(FileExistsError):
            with_retries(lambda: _create(filesystem, path, content, is_conditional=abilities.conditional_put), what=uri)
        standing = read_object(uri)
        if standing is not None and is_whole(standing):
            return standing
        if standing is not None:
            write_object(uri, content)
    raise TryAgain(f"{uri} was written and cannot be found; run the same command again")


def list_objects(uri: str) -> list[str]:
    """Names of the objects below ``uri``, relative to it, in order; none where nothing lies."""
    return list(found_below(uri))


def _replace(filesystem: Any, path: str, content: bytes) -> None:
    if not is_local(filesystem):
        filesystem.pipe_file(path, content)
        return
    with staging_file(Path(path)) as staging:
        staging.write_bytes(content)


def _create(filesystem: Any, path: str, content: bytes, *, is_conditional: bool) -> None:
    """Raises ``FileExistsError`` when something lies at ``path``."""
    if not is_local(filesystem):
        if not is_conditional and filesystem.exists(path):
            raise FileExistsError(path)
        filesystem.pipe_file(path, content, mode="create" if is_conditional else "overwrite")
        return
    staging = Path(f"{path}.{uuid4().hex[:8]}{STAGING}")
    staging.write_bytes(content)
    flush(staging)
    try:
        os.link(staging, path)  # whole, and only where nothing is: what a conditional put is on a disk
    finally:
        staging.unlink()
        flush(staging.parent)
