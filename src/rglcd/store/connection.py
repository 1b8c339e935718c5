"""Connections to object stores and other remote folders through fsspec, and the retries that each request is given."""

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

from rglcd.errors import InputError, TryAgain
from rglcd.store.disk_space import is_disk_full

NUM_ATTEMPTS: Final = 8
_CHUNK: Final = 16 << 20  # bytes of one read: what a broken connection costs
_LONGEST_PAUSE: Final = 10.0  # seconds

# Connections that say nothing are given up and tried again; the library's own default is to wait a minute for each.
_S3_OPTIONS: Final[dict[str, Any]] = {
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 3, "mode": "standard"}},
    "use_listings_cache": False,
}

Result = TypeVar("Result")


def open_url(uri: str) -> tuple[Any, str]:
    """fsspec's file system for ``uri``, and the path in it. Raises :class:`InputError` for a URL that no library knows."""
    import fsspec

    options = _S3_OPTIONS if uri.startswith("s3://") else {}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise InputError(f"{uri} cannot be opened: {_one_line(error)}") from None
    return filesystem, path.rstrip("/")


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

    What cannot come right by waiting is raised at once: no such object, no permission, no credentials.
    """
    for _ in attempts():
        try:
            return act()
        except (FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            raise InputError(f"{what} may not be touched with these credentials: {_one_line(error)}") from None
        except Exception as error:  # each of fsspec's file systems raises its own library's errors
            if is_disk_full(error):  # this machine's: waiting frees nothing
                raise
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise InputError(f"{what} cannot be reached: {_one_line(error)}") from None
            failure = error
    said = f"{NUM_ATTEMPTS} attempts, the last: {_one_line(failure)}"
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


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
