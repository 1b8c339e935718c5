"""Import user data as a source folder: an index, or a list of ready-made shards.

A TSV (url TAB caption), a folder of images with captions beside them, webdataset tars or img2dataset's output; here, over http
or in an object store. The folder is input, versioned by DVC, so it says all that a run depends on: images lie in it, and
shards are named by size and version.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from braceexpand import braceexpand

from rglcd.errors import InputError
from rglcd.sharding.source import INDEX
from rglcd.sharding.third_party_tars import LISTING, ReadyShard
from rglcd.store.manifest import sha256_of, write_json
from rglcd.store.staging import STAGING, staging_file

IMAGES: Final = "images"

_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
_TOY: Final = "corpus.json"
_MAX_SHARDS: Final = 1_000_000


def use(what: str, folder: Path) -> str:
    """Make ``folder`` a source of ``what``; returns a line that says what it holds. Prompts and references in it are left alone.

    ``what`` is a ``.tsv``, one or more ``.tar`` (braces expand: ``{00000..01242}.tar``), or a folder of tars or of images; a
    path or a URL that fsspec knows. Raises :class:`InputError` for anything else, and for a folder that holds the toy's corpus.
    """
    if (folder / _TOY).is_file():
        raise InputError(f"{folder} holds the toy corpus; name another folder (--folder), or move it away first")
    folder.mkdir(parents=True, exist_ok=True)
    if what.endswith(".tsv"):
        return _use_index(what, folder)
    shards = list(_shards_of(what))
    if shards:
        write_json(folder / LISTING, {"shards": [_listed(shard) for shard in shards]})
        _forget(folder, INDEX, IMAGES)
        return f"{folder} lists {len(shards)} ready-made shards, {sum(shard.bytes for shard in shards):,} bytes"
    if "://" not in what and Path(what).is_dir():
        return _use_images(Path(what), folder)
    raise InputError(f"{what} is neither a .tsv, nor .tar files, nor a folder of tars or images")


def _use_index(what: str, folder: Path) -> str:
    with staging_file(folder / INDEX) as staging:
        _copy(what, staging)
    _forget(folder, LISTING)
    return f"{folder / INDEX} is a copy of {what}: {(folder / INDEX).stat().st_size:,} bytes"


def _use_images(images: Path, folder: Path) -> str:
    """Images by name, each with the caption in the ``.txt`` beside it; one without is a row without a caption."""
    paths = [path for path in sorted(images.rglob("*")) if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.is_symlink()]
    if not paths:
        raise InputError(f"{images} holds neither tars nor images ({', '.join(sorted(_SUFFIXES))})")
    staging = folder / f".{IMAGES}{STAGING}"
    shutil.rmtree(staging, ignore_errors=True)
    with staging_file(folder / INDEX) as index, index.open("w", encoding="utf-8", newline="") as rows:
        for path in paths:
            name = path.relative_to(images).as_posix()
            if any(character in name for character in "\t\n\r\\"):
                raise InputError(f"{path}: a file name may not hold a tab, a line end or a backslash")
            _link(path, staging / name)
            beside = path.with_suffix(".txt")
            caption = " ".join(beside.read_text(encoding="utf-8", errors="replace").split()) if beside.is_file() else ""
            rows.write(f"{IMAGES}/{name}\t{caption}\n")
        shutil.rmtree(folder / IMAGES, ignore_errors=True)
        staging.rename(folder / IMAGES)
    _forget(folder, LISTING)
    return f"{folder / INDEX} names {len(paths)} images of {images}"


def _shards_of(what: str) -> Iterator[ReadyShard]:
    if what.endswith(".tar"):
        names = braceexpand(what)
        for count, name in enumerate(names):
            if count >= _MAX_SHARDS:
                raise InputError(f"{what} names more than {_MAX_SHARDS} shards")
            yield _described(name)
    else:
        filesystem, root = _filesystem(what)
        found = sorted(filesystem.glob(f"{root.rstrip('/')}/*.tar"))
        for path in found:
            rows = f"{path.removesuffix('.tar')}.parquet"
            shard = _described(filesystem.unstrip_protocol(path))
            beside = _described(filesystem.unstrip_protocol(rows)) if filesystem.exists(rows) else None
            yield ReadyShard(shard.uri, shard.bytes, shard.version, beside)


def _described(uri: str) -> ReadyShard:
    """A file as it is now: a local one by its digest, another by what its store calls its version."""
    if "://" not in uri or uri.startswith("file://"):
        path = Path(uri.removeprefix("file://")).absolute()
        if not path.is_file():
            raise InputError(f"{path} is missing")
        return ReadyShard(str(path), path.stat().st_size, sha256_of(path))
    filesystem, path_there = _filesystem(uri)
    try:
        facts: dict[str, Any] = filesystem.info(path_there)
    except Exception as error:  # each of fsspec's file systems raises its own library's errors
        raise InputError(f"{uri} cannot be reached: {' '.join(str(error).split())[:300]}") from None
    if facts.get("size") is None:
        raise InputError(f"{uri}: its server does not say how large it is")
    version = facts.get("ETag") or facts.get("etag")
    return ReadyShard(uri, int(facts["size"]), None if version is None else str(version).strip('"'))


def _listed(shard: ReadyShard) -> dict[str, Any]:
    return asdict(shard)


def _filesystem(uri: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise InputError(f"{uri}: {error}") from None
    return filesystem, path


def _copy(what: str, target: Path) -> None:
    if "://" not in what:
        if not Path(what).is_file():
            raise InputError(f"{what} is missing")
        shutil.copyfile(what, target)
        return
    filesystem, path = _filesystem(what)
    try:
        filesystem.get_file(path, str(target))
    except Exception as error:  # each of fsspec's file systems raises its own library's errors
        raise InputError(f"{what} cannot be fetched: {' '.join(str(error).split())[:300]}") from None


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, target)


def _forget(folder: Path, *names: str) -> None:
    """Remove what an earlier source of another kind has left."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
