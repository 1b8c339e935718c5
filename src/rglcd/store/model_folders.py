"""Model folders: brought from a local folder, an object store or the model hub, text and safetensors only."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from rglcd.errors import InputError, TryAgain
from rglcd.store.connection import open_url, with_retries
from rglcd.store.disk_space import is_disk_full
from rglcd.store.files import fetch_folder, is_remote, list_folder
from rglcd.store.hub_mirrors import alternatives_to

MODEL_FILES = frozenset({".json", ".safetensors", ".txt", ".model", ".md"})
"""What a model folder may bring in: text and safetensors. Pickles (.bin, .pt, .ckpt) stay outside."""

UNUSED = (
    *("*.fp16.*", "*.non_ema.*", "*onnx*", "*openvino*", "safety_checker/*"),
    *("v1-*.safetensors", "v2-*.safetensors", "sd_xl_*.safetensors"),
)
"""What Stable Diffusion's repositories hold beside the parts of a pipeline: the same weights again, whole or in other precisions."""

_HUB_SECONDS = 30
"""How long the hub may take to say what a repository is."""

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


def fetch_model_folder(uri: str, destination: Path, *, revision: str | None) -> None:
    """Copy the model folder ``uri`` to ``destination``: :data:`MODEL_FILES` only, without those that :data:`UNUSED` names.

    ``uri`` is a local folder (``./``, ``../`` or ``/`` first), any URL that fsspec knows (``s3://bucket/prefix``), or
    a hub id with its ``revision``. Raises :class:`InputError` when it cannot be had.
    """
    if uri.startswith(("./", "../", "/")):
        _copy_all(local_files(Path(uri)), destination)
    elif is_remote(uri):
        _copy_remote(uri, destination)
    else:
        _copy_from_hub(uri, destination, revision=revision, patterns=[f"*{suffix}" for suffix in sorted(MODEL_FILES)])
    _refuse_indexes_that_lead_out(destination, uri)


def _refuse_indexes_that_lead_out(folder: Path, uri: str) -> None:
    """Raise :class:`InputError` for an index of weights in several files that names one elsewhere, which no digest of the folder covers."""
    for path in sorted(folder.rglob("*.index.json")):
        try:
            files = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # no index: whoever opens the folder says so
        elsewhere = next((name for name in files if not isinstance(name, str) or PurePosixPath(name).name != name), None)
        if elsewhere is not None:
            raise InputError(f"{uri}: {path.relative_to(folder)} names the file {elsewhere!a}; its weights must lie beside it")


def local_files(folder: Path) -> dict[str, Path]:
    """What :func:`fetch_model_folder` copies of a local folder, by relative POSIX path. Raises :class:`InputError`."""
    if not folder.is_dir():
        raise InputError(f"model folder {folder} is missing (looked in {Path.cwd()})")
    files = {}
    for path in sorted(folder.rglob("*")):
        _refuse_foreign_link(path, folder)
        if path.is_file() and path.suffix in MODEL_FILES:
            files[path.relative_to(folder).as_posix()] = path
    return {name: files[given] for name, given in _used(files).items()}


def _used(names: Iterable[str]) -> dict[str, str]:
    """Of a model folder's files those that are read: the name that each gets, and its own.

    Weights of half precision are left out, unless there are no others: many fine-tunes come in float16 alone.
    """
    given = set(names)
    used = {name: name for name in given if not any(fnmatchcase(name, pattern) for pattern in UNUSED)}
    halves = {name.replace(".fp16.", "."): name for name in given if ".fp16." in PurePosixPath(name).name}
    return dict(sorted((halves | used).items()))


def _refuse_foreign_link(path: Path, folder: Path) -> None:
    """Raise :class:`InputError` for a link, but one of the hub's own cache (``snapshots/COMMIT/FILE``), whose files lie in ``blobs``."""
    if not path.is_symlink():
        return
    root = folder.resolve()
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else None
    if blobs is None or not path.is_file() or path.resolve().parent != blobs:
        raise InputError(f"{path} is a link; a model folder may hold regular files only (cp -rL copies what links lead to)")


def named_local_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """What :func:`fetch_named_files` copies of a local folder, by name. Raises :class:`InputError`."""
    for name in names:
        _refuse_foreign_link(folder / name, folder)
    return {name: folder / name for name in names if (folder / name).is_file()}


def _copy_all(files: Mapping[str, Path], destination: Path) -> None:
    for name, path in files.items():
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination / name)


def _copy_remote(url: str, destination: Path) -> None:
    try:
        listed = [name for name in list_folder(url) if PurePosixPath(name).suffix in MODEL_FILES]
        used = _used(listed)
        copied = fetch_folder(url, destination, keep=lambda name: name in used.values())
        for name, given in used.items():
            (destination / given).rename(destination / name)
    except TryAgain as error:
        raise InputError(f"{url} cannot be fetched: {error}") from None
    if not copied:
        raise InputError(f"{url} holds no files")


def _copy_from_hub(repository: str, destination: Path, *, revision: str | None, patterns: Sequence[str]) -> None:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def refusal(error: Exception) -> InputError:
        what = f"{repository} at {revision} cannot be had from the model hub ({type(error).__name__})"
        return InputError(f"{what}. {alternatives_to(repository)}")

    try:
        # One question, without repetition: a hub that is out of reach would be tried for a minute and a half.
        HfApi().model_info(repository, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:  # what it raises is its HTTP library's, which is another from one major version to the next
        raise refusal(error) from None
    try:
        snapshot_download(
            repository,
            revision=revision,
            local_dir=str(destination),
            allow_patterns=list(patterns),
            ignore_patterns=list(UNUSED),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        raise refusal(error) from None
    shutil.rmtree(destination / ".cache", ignore_errors=True)


def fetch_named_files(uri: str, names: Sequence[str], destination: Path, *, revision: str | None) -> None:
    """Copy those of the files ``names`` that the folder ``uri`` (as in :func:`fetch_model_folder`) has, whatever their suffix.

    Raises :class:`InputError` when it has none of them or cannot be reached.
    """
    destination.mkdir(parents=True, exist_ok=True)
    if uri.startswith(("./", "../", "/")):
        _copy_all(named_local_files(Path(uri), names), destination)
    elif is_remote(uri):
        _copy_remote_files(uri, names, destination)
    else:
        _copy_from_hub(uri, destination, revision=revision, patterns=names)
    if not any((destination / name).is_file() for name in names):
        raise InputError(f"{uri} has no {' and no '.join(names)}")


def _copy_remote_files(url: str, names: Sequence[str], destination: Path) -> None:
    """By name, not from a listing: a plain http server has none."""
    try:
        filesystem, root = open_url(url)
        for name in names:
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                with_retries(partial(filesystem.get_file, f"{root}/{name}", str(target)), what=url)
    except TryAgain as error:
        raise InputError(f"{url} cannot be fetched: {error}") from None
