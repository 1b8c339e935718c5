"""Model folders: brought from a local folder, an object store or the model hub, text and safetensors only."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Final

from rglcd.errors import InputError, TryAgain
from rglcd.store.connection import open_url, with_retries
from rglcd.store.disk_space import is_disk_full
from rglcd.store.files import fetch_folder, is_remote, list_folder
from rglcd.store.hub_mirrors import alternatives_to

MODEL_FILES = frozenset({".json", ".safetensors", ".txt", ".model", ".md"})
"""What a model folder may bring in: text and safetensors. Pickles (.bin, .pt, .ckpt) stay outside."""

UNUSED: Final = ("*.non_ema.*", "*onnx*", "*openvino*", "safety_checker/*", "text_encoders/*")
"""What published repositories hold beside the parts of a pipeline: the same weights again, in other formats and for other programs."""

_INDEX: Final = "model_index.json"
"""Of a pipeline: its weights lie in the folders of its parts, and what lies beside the index is a whole model, for other programs."""

_VARIANTS: Final = ("fp16", "bf16")
_VARIANT: Final = re.compile(rf"\.({'|'.join(_VARIANTS)})(?=[.-])")
"""Of the name of weights in half precision, of one of several files, and of the index of these, as diffusers and transformers write them:
``model.fp16.safetensors``, ``model.fp16-00001-of-00002.safetensors``, ``model.safetensors.index.fp16.json``."""
_WEIGHTS: Final = re.compile(r"(.+?)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""What such a name is without its variant: of which network, which of several files, and whether an index."""

_HUB_SECONDS = 30
"""How long the hub may take to say what a repository is."""
_MOMENTARY: Final = (408, 425, 429)
"""What the hub answers beside 5xx where another try may be answered well."""

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
    """Copy the model folder ``uri`` to ``destination``: of :data:`MODEL_FILES` those that are read (:func:`_used`).

    ``uri`` is a local folder (``./``, ``../`` or ``/`` first), any URL that fsspec knows (``s3://bucket/prefix``), or
    a hub id with its ``revision``. Raises :class:`InputError` when it cannot be had, :class:`TryAgain` when the store of a URL does not
    answer, or the hub says that it cannot for the moment.
    """
    if uri.startswith(("./", "../", "/")):
        _copy_all(local_files(Path(uri)), destination)
    elif is_remote(uri):
        _copy_remote(uri, destination)
    else:
        _copy_from_hub(uri, destination, revision=revision, choose=_used)
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
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    return {name: files[given] for name, given in _used(files).items()}


def _used(names: Iterable[str]) -> dict[str, str]:
    """Of a model folder's files those that are read: the name that each gets, and its own.

    Weights of half precision are left out, unless a network has no others: many fine-tunes come in float16 alone.
    """
    given = {name for name in names if _may_be_read(name)}
    if _INDEX in given:
        given = {name for name in given if "/" in name or not name.endswith(".safetensors")}
    used, known = dict[str, str](), set[str]()
    for variant in (None, *_VARIANTS):
        chosen = [name for name in given if _variant_of(name) == variant and _network_of(name) not in known]
        used |= {_usual_name(name): name for name in chosen}
        known |= {_network_of(name) for name in chosen}
    return dict(sorted(used.items()))


def _may_be_read(name: str) -> bool:
    return PurePosixPath(name).suffix in MODEL_FILES and not any(fnmatchcase(name, pattern) for pattern in UNUSED)


def _variant_of(name: str) -> str | None:
    found = _VARIANT.search(PurePosixPath(name).name)
    return None if found is None else found[1]


def _network_of(name: str) -> str:
    """Folder and stem of a network's weights, one for all of its files in all precisions; of any other file its name."""
    path = _without_variant(name)
    found = _WEIGHTS.fullmatch(path.name)
    return str(path if found is None else path.with_name(found[1]))


def _usual_name(name: str) -> str:
    """``name`` without its variant; but one of several files keeps its own, by which their index names it."""
    usual = _without_variant(name)
    found = _WEIGHTS.fullmatch(usual.name)
    return name if found is not None and found[2] is not None else str(usual)


def _without_variant(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    return path.with_name(_VARIANT.sub("", path.name))


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
    used = _used(list_folder(url))
    if not fetch_folder(url, destination, keep=lambda name: name in used.values()):
        raise InputError(f"{url} holds no files")
    for name, given in used.items():
        (destination / given).rename(destination / name)


def _copy_from_hub(repository: str, destination: Path, *, revision: str | None, choose: Callable[[list[str]], Mapping[str, str]]) -> None:
    """Fetch what ``choose`` gives of the names of the files there: the name that each gets, and its own."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    def refusal(error: Exception) -> InputError | TryAgain:
        what = f"{repository} at {revision} cannot be had from the model hub ({type(error).__name__})"
        if (status := _status_of(error)) >= 500 or status in _MOMENTARY:
            return TryAgain(f"{what}: it answers {status} for the moment; run the same command again")
        if isinstance(error, GatedRepoError):
            return InputError(f"{what}. Agree to its terms on its page there, and set HF_TOKEN to a token of the account that did")
        return InputError(f"{what}. {alternatives_to(repository)}")

    try:
        # One question, without repetition: a hub that is out of reach would be tried for a minute and a half.
        files = HfApi().model_info(repository, revision=revision, timeout=_HUB_SECONDS).siblings or []
    except Exception as error:  # what it raises is its HTTP library's, which is another from one major version to the next
        raise refusal(error) from None
    chosen = choose([file.rfilename for file in files])
    try:
        patterns = [escape(given) for given in chosen.values()]
        snapshot_download(repository, revision=revision, local_dir=str(destination), allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        raise refusal(error) from None
    shutil.rmtree(destination / ".cache", ignore_errors=True)
    for name, given in chosen.items():
        (destination / given).rename(destination / name)


def _status_of(error: BaseException) -> int:
    """The HTTP status that an error of the hub's library was made from; 0 where there was no answer."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(status := getattr(getattr(link, "response", None), "status_code", None), int):
            return status
        link = link.__cause__
    return 0


def fetch_named_files(uri: str, names: Sequence[str], destination: Path, *, revision: str | None) -> None:
    """Copy those of the files ``names`` that the folder ``uri`` (as in :func:`fetch_model_folder`) has, whatever their suffix.

    Raises :class:`InputError` when it has none of them or cannot be had, :class:`TryAgain` when the store of a URL does not answer.
    """
    destination.mkdir(parents=True, exist_ok=True)
    if uri.startswith(("./", "../", "/")):
        _copy_all(named_local_files(Path(uri), names), destination)
    elif is_remote(uri):
        _copy_remote_files(uri, names, destination)
    else:
        _copy_from_hub(uri, destination, revision=revision, choose=lambda files: {name: name for name in names if name in files})
    if not any((destination / name).is_file() for name in names):
        raise InputError(f"{uri} has no {' and no '.join(names)}")


def _copy_remote_files(url: str, names: Sequence[str], destination: Path) -> None:
    """By name, not from a listing: a plain http server has none."""
    filesystem, root = open_url(url)
    for name in names:
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            with_retries(partial(filesystem.get_file, f"{root}/{name}", str(target)), what=url)
