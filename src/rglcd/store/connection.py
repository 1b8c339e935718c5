"""Connections to object stores and other remote folders through fsspec, and the retries that each request is given."""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

from rglcd.errors import InputError, TryAgain
from rglcd.store.disk_space import is_disk_full
from rglcd.store.refusals import NO_BUCKET, RefusedError, one_line, raise_for_good

NUM_ATTEMPTS: Final = 8
_CHUNK: Final = 16 << 20  # bytes of one read: what a broken connection costs
_LONGEST_PAUSE: Final = 10.0  # seconds
_S3: Final = ("s3://", "s3a://")

# Connections that say nothing are given up and tried again; the library's own default is to wait a minute for each. It need not ask for
# checksums, which some stores refuse: whatever is read is compared here.
_S3_OPTIONS: Final[dict[str, Any]] = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"max_attempts": 3, "mode": "standard"},
        "response_checksum_validation": "when_required",
    },
    "use_listings_cache": False,
}

_takes_no_checksums: Final = set[tuple[str, str]]()
"""Buckets of stores that refuse requests with checksums, as :func:`rglcd.store.probe.probe` found out."""

Result = TypeVar("Result")


def open_url(uri: str) -> tuple[Any, str]:
    """fsspec's file system for ``uri``, and the path in it. Raises :class:`InputError` for a URL that no library knows."""
    import fsspec

    options = _S3_OPTIONS if uri.startswith(_S3) else {}
    if options and store_of(uri) in _takes_no_checksums:
        options = options | {"config_kwargs": options["config_kwargs"] | {"request_checksum_calculation": "when_required"}}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise InputError(f"{uri} cannot be opened: {one_line(error)}") from None
    return filesystem, path.rstrip("/")


def store_of(uri: str) -> tuple[str, str]:
    """What all folders of one bucket of one store have in common: the endpoint that the environment names, and the bucket."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return endpoint, uri.partition("://")[2].partition("/")[0]


def send_checksums(uri: str, *, wanted: bool) -> None:
    """Whether this process's requests to the store of ``uri`` carry checksums of their own (``x-amz-checksum-*``)."""
    (_takes_no_checksums.discard if wanted else _takes_no_checksums.add)(store_of(uri))


def require_bucket(uri: str) -> None:
    """Raise :class:`InputError` if ``uri`` lies in a bucket that does not exist; :class:`TryAgain` when the store does not answer.

    What these credentials may not see counts as being there, and so does what lies in no object store.
    """
    if not uri.startswith(_S3):
        return
    filesystem, path = open_url(uri)
    try:
        with_retries(lambda: filesystem.info(f"{path}/-"), what=uri)  # a bucket's own HEAD has no body to say what is missing
    except FileNotFoundError:
        pass
    except RefusedError as refused:
        if refused.code == NO_BUCKET:
            raise


def found_below(uri: str) -> dict[str, dict[str, Any]]:
    """What fsspec says of each file below ``uri``, by name relative to it, in order; none where nothing lies.

    The empty objects that stand for folders (``src/``, ``src/images/``, ``src/images``: consoles and sync tools make them) are left out.
    """
    filesystem, root = open_url(uri)
    try:
        found: dict[str, dict[str, Any]] = with_retries(lambda: filesystem.find(root, detail=True), what=uri)
    except FileNotFoundError:
        return {}
    files = {path: details for path, details in sorted(found.items()) if path != root and not path.endswith("/")}
    below = {PurePosixPath(path).relative_to(root): details for path, details in files.items()}
    folders = frozenset(parent for name in below for parent in name.parents)
    return {name.as_posix(): details for name, details in below.items() if details.get("size") or name not in folders}


def is_s3(filesystem: Any) -> bool:
    """Whether ``filesystem`` speaks S3's protocol."""
    return "s3" in _protocols(filesystem)


def is_local(filesystem: Any) -> bool:
    """Whether ``filesystem`` is this machine's (``file://``)."""
    return "file" in _protocols(filesystem)


def make_parent(filesystem: Any, path: str) -> None:
    """Make the folder of ``path`` where there are folders: an object store has none."""
    if not is_s3(filesystem):
        filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)


def attempts() -> Iterator[int]:
    """The numbers of so many attempts as a request is given, each but the first after an ever longer pause."""
    for attempt in range(NUM_ATTEMPTS):
        if attempt:
            longest = min(_LONGEST_PAUSE, 0.1 * 2**attempt)
            time.sleep(longest * (0.5 + 0.5 * random.random()))  # noqa: S311 (spreads retries out; no secret depends on it)
        yield attempt


def with_retries(act: Callable[[], Result], *, what: str) -> Result:
    """``act`` until it succeeds: a store's 500, a reset or a cut answer is no reason to lose a run.

    What cannot come right by waiting is raised at once (:func:`~rglcd.store.refusals.raise_for_good`): no such object, no such bucket,
    no permission, no credentials, nothing that the store knows.
    """
    for _ in attempts():
        try:
            return act()
        except Exception as error:  # each of fsspec's file systems raises its own library's errors
            if is_disk_full(error):  # this machine's: waiting frees nothing
                raise
            raise_for_good(error, what=what)
            failure = error
    said = f"{NUM_ATTEMPTS} attempts, the last: {one_line(failure)}"
    raise TryAgain(f"{what} cannot be reached ({said}); what is finished is kept, run the same command again")


def chunks(filesystem: Any, path: str, size: int) -> Iterator[bytes]:
    """The ``size`` bytes of the object at ``path``, piece by piece. ``FileNotFoundError`` if there is none."""
    if size == 0 and not with_retries(lambda: filesystem.exists(path), what=path):
        raise FileNotFoundError(path)
    for start in range(0, size, _CHUNK):
        end = min(start + _CHUNK, size)
        yield with_retries(partial(_read_range, filesystem, path, start, end), what=path)


def _read_range(filesystem: Any, path: str, start: int, end: int) -> bytes:
    chunk: bytes = filesystem.cat_file(path, start=start, end=end)
    if len(chunk) != end - start:
        raise EOFError(f"{len(chunk)} bytes came of {end - start}")
    return chunk


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
