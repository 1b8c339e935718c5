"""Where bytes come from and go to: local folders, object stores and the model hub, behind one module over fsspec.

One of the two modules that may read the environment (through fsspec and huggingface_hub: credentials,
endpoints), so that none of it enters the configuration.

``RGLCD_STORE``  object-store folder in which the artifacts' bytes lie (``s3://bucket/prefix``; default: beside their manifests)
``RGLCD_CACHE``  local folder for what is read from a store (default: ``.cache`` beside the artifacts)
``RGLCD_CACHE_GIB``  how much of that is kept when nothing reads it (default: 100); see :mod:`rglcd.store.local_cache`

Whatever is written is read back and compared before anyone is told of it: stores have lost parts of an upload without a word
(mlcommons/storage issue 593), and neither its size nor its metadata showed it.
"""

import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from rglcd.errors import InputError, TryAgain
from rglcd.store.disk_space import is_no_room
from rglcd.store.hub_mirrors import alternatives_to
from rglcd.store.manifest import FileEntry, alteration

MODEL_FILES = frozenset({".json", ".safetensors", ".txt", ".model", ".md"})
"""What a model folder may bring in: text and safetensors. Pickles (.bin, .pt, .ckpt) stay outside."""

UNUSED_ON_THE_HUB = (
    *("*.fp16.*", "*.non_ema.*", "*onnx*", "*openvino*", "safety_checker/*"),
    *("v1-*.safetensors", "v2-*.safetensors", "sd_xl_*.safetensors"),
)
"""What Stable Diffusion's repositories hold beside the parts of a pipeline: the same weights again, whole or in other precisions."""
_CHUNK: Final = 16 << 20  # bytes of one read: what a broken connection costs
_PART: Final = 32 << 20  # bytes of one part of an upload
_ATTEMPTS: Final = 8
_LONGEST_PAUSE: Final = 10.0  # seconds

# Connections that say nothing are given up and tried again; the library's own default is to wait a minute for each.
_S3_OPTIONS: Final[dict[str, Any]] = {
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 3, "mode": "standard"}},
    "use_listings_cache": False,
}

_MD5: Final = re.compile(r"[0-9a-f]{32}")  # the ETag of an object put in one piece; that of one put in parts holds a dash

Result = TypeVar("Result")


def is_remote(place: str | Path) -> bool:
    """Whether ``place`` is a URL (``s3://...``), not a folder of this machine."""
    return "://" in str(place)


def store_in_force() -> str | None:
    """The object-store folder that the environment names, if it names one."""
    uri = os.environ.get("RGLCD_STORE") or None
    if uri is not None and not is_remote(uri):
        raise InputError(f"RGLCD_STORE is {uri!r}; it is a URL such as s3://bucket/prefix")
    return uri


def cache_folder(*, beside: Path) -> Path:
    """Where local copies of a store's files lie: what the environment names, or ``.cache`` beside the artifact's folder."""
    named = os.environ.get("RGLCD_CACHE")
    return Path(named) if named else beside.parent / ".cache"


def cache_limit() -> int:
    """Bytes that local copies of a store's files may take."""
    word = os.environ.get("RGLCD_CACHE_GIB") or "100"
    with suppress(ValueError, OverflowError):
        if (limit := int(float(word) * 2**30)) > 0:
            return limit
    raise InputError(f"RGLCD_CACHE_GIB is {word!r}; it is a number of GiB above 0")


# --- single objects ------------------------------------------------------------------------------


def read_object(uri: str) -> bytes | None:
    """The whole object at ``uri``, or None if there is none. For small ones: manifests and records."""
    filesystem, path = _open(uri)
    try:
        content: bytes = _persistently(lambda: filesystem.cat_file(path), what=uri)
    except FileNotFoundError:
        return None
    return content


def write_object(uri: str, content: bytes) -> None:
    """Put a small object at ``uri``, in place of what is there. Raises :class:`TryAgain` when it never reads as it was written."""
    filesystem, path = _open(uri)
    _make_parent(filesystem, path)
    found: bytes | None = None
    for attempt in range(_ATTEMPTS):
        _pause_before(attempt)
        _persistently(lambda: filesystem.pipe_file(path, content), what=uri)
        if (found := read_object(uri)) == content:
            return
    raise TryAgain(f"{uri} was written and reads as something else ({_summary(found)}); run the same command again")


def create_object(uri: str, content: bytes, *, is_whole: Callable[[bytes], bool]) -> bytes:
    """Put ``content`` at ``uri`` unless something whole is there already; returns what is there afterwards.

    On S3 this is one conditional request (``If-None-Match: *``): of any number of writers exactly one wins, and all
    are told the same. A writer whose answer was lost on the way finds its own content there. What a store has damaged
    is of no use to anybody, and would stand in the way for ever: it is replaced.
    """
    filesystem, path = _open(uri)
    _make_parent(filesystem, path)
    for _ in range(_ATTEMPTS):
        with suppress(FileExistsError):
            _persistently(lambda: _create(filesystem, path, content), what=uri)
        standing = read_object(uri)
        if standing is not None and is_whole(standing):
            return standing
        if standing is not None:
            write_object(uri, content)
    raise TryAgain(f"{uri} was written and cannot be found; run the same command again")


def list_objects(uri: str) -> list[str]:
    """Names of the objects below ``uri``, relative to it, in order; none where nothing lies."""
    filesystem, root = _open(uri)
    try:
        found = _persistently(lambda: filesystem.find(root), what=uri)
    except FileNotFoundError:
        return []
    return sorted(PurePosixPath(name).relative_to(root).as_posix() for name in found if name != root)


# --- files ---------------------------------------------------------------------------------------


def upload(path: Path, uri: str, entry: FileEntry) -> None:
    """Put the file at ``path`` at ``uri``, unless it is there; returns when what is there reads as ``entry`` says.

    Raises :class:`TryAgain` when the store keeps failing: nothing local is lost, and the same command goes on.
    """
    filesystem, target = _open(uri)
    _make_parent(filesystem, target)
    for attempt in range(_ATTEMPTS):
        if _holds(filesystem, target, entry):
            return
        _pause_before(attempt)
        _persistently(lambda: _put(filesystem, path, target), what=uri)
    if not _holds(filesystem, target, entry):
        raise TryAgain(f"{uri} was written {_ATTEMPTS} times and never read as it was written; run the same command again")


def download(uri: str, path: Path, entry: FileEntry) -> None:
    """Bring the object at ``uri`` to ``path``: aside, compared with ``entry``, then renamed.

    Raises :class:`InputError` when it is missing or is not what ``entry`` says, :class:`TryAgain` when the store keeps failing.
    """
    filesystem, source = _open(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{random.getrandbits(32):08x}.aside")
    try:
        for attempt in range(_ATTEMPTS):
            _pause_before(attempt)
            with aside.open("wb") as stream:
                for chunk in _chunks(filesystem, source, entry.bytes):
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            if alteration(aside, entry) is None:
                aside.replace(path)
                return
        raise InputError(f"{uri} {alteration(aside, entry)}: the store's copy is damaged; delete it there and make it again")
    except FileNotFoundError:
        raise InputError(f"{uri} is missing from the store, and a manifest names it; make it again") from None
    finally:
        aside.unlink(missing_ok=True)


def _holds(filesystem: Any, path: str, entry: FileEntry) -> bool:
    """Whether ``path`` reads, byte for byte, as ``entry`` says."""
    try:
        if _persistently(lambda: filesystem.info(path), what=path)["size"] != entry.bytes:
            return False
        state = hashlib.sha256()
        for chunk in _chunks(filesystem, path, entry.bytes):
            state.update(chunk)
    except FileNotFoundError:
        return False
    return state.hexdigest() == entry.sha256


def _chunks(filesystem: Any, path: str, size: int) -> Iterator[bytes]:
    if size == 0 and not _persistently(lambda: filesystem.exists(path), what=path):
        raise FileNotFoundError(path)
    for start in range(0, size, _CHUNK):
        end = min(start + _CHUNK, size)
        yield _persistently(partial(_read_range, filesystem, path, start, end), what=path)


def _read_range(filesystem: Any, path: str, start: int, end: int) -> bytes:
    chunk: bytes = filesystem.cat_file(path, start=start, end=end)
    if len(chunk) != end - start:
        raise EOFError(f"{len(chunk)} bytes came of {end - start}")
    return chunk


def _put(filesystem: Any, path: Path, target: str) -> None:
    if _is_local(filesystem):
        aside = f"{target}.{os.getpid()}.{random.getrandbits(32):08x}.aside"
        shutil.copyfile(path, aside)
        Path(aside).replace(target)
    elif "s3" in _protocols(filesystem):
        filesystem.put_file(str(path), target, chunksize=_PART)
    else:
        filesystem.put_file(str(path), target)


def _create(filesystem: Any, path: str, content: bytes) -> None:
    """Raises ``FileExistsError`` when something lies at ``path``."""
    if not _is_local(filesystem):
        filesystem.pipe_file(path, content, mode="create")
        return
    aside = Path(f"{path}.{os.getpid()}.{random.getrandbits(32):08x}.aside")
    aside.write_bytes(content)
    try:
        os.link(aside, path)  # whole, and only where nothing is: what a conditional put is on a disk
    finally:
        aside.unlink()


# --- the store -----------------------------------------------------------------------------------


def _open(uri: str) -> tuple[Any, str]:
    import fsspec

    options = _S3_OPTIONS if uri.startswith("s3://") else {}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise InputError(f"{uri} cannot be opened: {_one_line(error)}") from None
    return filesystem, path.rstrip("/")


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _is_local(filesystem: Any) -> bool:
    return "file" in _protocols(filesystem)


def _make_parent(filesystem: Any, path: str) -> None:
    if "s3" not in _protocols(filesystem):  # an object store has no folders
        filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)


def _persistently(act: Callable[[], Result], *, what: str) -> Result:
    """``act`` until it succeeds, pausing ever longer: a store's 500, a reset or a cut answer is no reason to lose a run.

    What cannot come right by waiting is raised at once: no such object, no permission, no credentials.
    """
    for attempt in range(_ATTEMPTS):
        _pause_before(attempt)
        try:
            return act()
        except (FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            raise InputError(f"{what} may not be touched with these credentials: {_one_line(error)}") from None
        except Exception as error:  # each of fsspec's file systems raises its own library's errors
            if is_no_room(error):  # of this machine's disk: waiting makes none
                raise
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise InputError(f"{what} cannot be reached: {_one_line(error)}") from None
            failure = error
    said = f"{_ATTEMPTS} attempts, the last: {_one_line(failure)}"
    raise TryAgain(f"{what} cannot be reached ({said}); what is finished is kept, run the same command again")


def _pause_before(attempt: int) -> None:
    if attempt:
        longest = min(_LONGEST_PAUSE, 0.1 * 2**attempt)
        time.sleep(longest * (0.5 + 0.5 * random.random()))  # noqa: S311 (spreads retries out; no secret depends on it)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _summary(content: bytes | None) -> str:
    return "nothing" if content is None else f"{len(content)} bytes"


# --- folders -------------------------------------------------------------------------------------


def list_folder(uri: str) -> dict[str, str]:
    """What lies below ``uri``: a line of size and version (ETag on S3) for each name, in order.

    Raises :class:`InputError` when nothing does, or when a name climbs out of the folder.
    """
    filesystem, root = _open(uri)
    try:
        found = _persistently(lambda: filesystem.find(root, detail=True), what=uri)
    except FileNotFoundError:
        found = {}
    listing = {}
    for path, details in sorted(found.items()):
        name = PurePosixPath(path).relative_to(root)
        if ".." in name.parts:
            raise InputError(f"{uri} holds {name}, which climbs out of the folder")
        listing[name.as_posix()] = f"{details['size']} {str(details.get('ETag', '')).strip(chr(34))}".strip()
    if not listing:
        raise InputError(f"{uri} holds no files")
    return listing


def fetch_folder(uri: str, destination: Path, *, keep: Callable[[str], bool]) -> list[str]:
    """Copy the files below ``uri`` whose names ``keep`` wants to ``destination``, and return the names.

    Nothing says what these files must be but the store's listing: sizes are compared, and MD5 where the store's ETag is one.
    """
    filesystem, root = _open(uri)
    names = []
    for name, version in list_folder(uri).items():
        if keep(name):
            _fetch_listed(filesystem, f"{root}/{name}", destination / name, version)
            names.append(name)
    return names


def _fetch_listed(filesystem: Any, source: str, path: Path, version: str) -> None:
    size, _, etag = version.partition(" ")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    for attempt in range(_ATTEMPTS):
        _pause_before(attempt)
        state = hashlib.md5(usedforsecurity=False)
        with aside.open("wb") as stream:
            for chunk in _chunks(filesystem, source, int(size)):
                state.update(chunk)
                stream.write(chunk)
        if not _MD5.fullmatch(etag) or state.hexdigest() == etag:
            aside.replace(path)
            return
    raise InputError(f"{source} has md5 {state.hexdigest()}, and the store lists {etag}: it is damaged there")


# --- model folders -------------------------------------------------------------------------------


def fetch_model_folder(uri: str, destination: Path, *, revision: str | None) -> None:
    """Copy the model folder ``uri`` to ``destination``, :data:`MODEL_FILES` only.

    ``uri`` is a local folder (``./``, ``../`` or ``/`` first), any URL that fsspec knows (``s3://bucket/prefix``), or
    a hub id with its ``revision``. Raises :class:`InputError` when it cannot be had.
    """
    if uri.startswith(("./", "../", "/")):
        _copy_local(Path(uri), destination)
    elif "://" in uri:
        _copy_remote(uri, destination)
    else:
        _copy_from_hub(uri, destination, revision=revision, patterns=[f"*{suffix}" for suffix in sorted(MODEL_FILES)])


def _copy_local(folder: Path, destination: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"model folder {folder} is missing (looked in {Path.cwd()})")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise InputError(f"{path} is a link; a model folder may hold regular files only")
        if path.is_file() and path.suffix in MODEL_FILES:
            target = destination / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _copy_remote(url: str, destination: Path) -> None:
    try:
        copied = fetch_folder(url, destination, keep=lambda name: PurePosixPath(name).suffix in MODEL_FILES)
    except TryAgain as error:
        raise InputError(f"{url} cannot be fetched: {error}") from None
    if not copied:
        raise InputError(f"{url} holds no files")


def _copy_from_hub(repository: str, destination: Path, *, revision: str | None, patterns: Sequence[str]) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(
            repository,
            revision=revision,
            local_dir=str(destination),
            allow_patterns=list(patterns),
            ignore_patterns=list(UNUSED_ON_THE_HUB),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if is_no_room(error):
            raise
        raise InputError(
            f"{repository} at {revision} cannot be had from the model hub ({type(error).__name__}). {alternatives_to(repository)}"
        ) from None
    shutil.rmtree(destination / ".cache", ignore_errors=True)


TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What of a model folder a tokenizer is made of: a scorer that takes another model's tokenizer leaves its gigabytes where they are."""


def fetch_named_files(uri: str, names: Sequence[str], destination: Path, *, revision: str | None) -> None:
    """Copy those of the files ``names`` that the folder ``uri`` (as in :func:`fetch_model_folder`) has, whatever their suffix.

    Raises :class:`InputError` when it has none of them or cannot be reached.
    """
    destination.mkdir(parents=True, exist_ok=True)
    if uri.startswith(("./", "../", "/")):
        _copy_local_files(Path(uri), names, destination)
    elif "://" in uri:
        _copy_remote_files(uri, names, destination)
    else:
        _copy_from_hub(uri, destination, revision=revision, patterns=names)
    if not any((destination / name).is_file() for name in names):
        raise InputError(f"{uri} has no {' and no '.join(names)}")


def _copy_local_files(folder: Path, names: Sequence[str], destination: Path) -> None:
    for name in names:
        path = folder / name
        if path.is_symlink():
            raise InputError(f"{path} is a link; a model folder may hold regular files only")
        if path.is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination / name)


def _copy_remote_files(url: str, names: Sequence[str], destination: Path) -> None:
    """By name, not from a listing: a plain http server has none."""
    try:
        filesystem, root = _open(url)
        for name in names:
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                _persistently(partial(filesystem.get_file, f"{root}/{name}", str(target)), what=url)
    except TryAgain as error:
        raise InputError(f"{url} cannot be fetched: {error}") from None
