"""Import user data as a source folder: an index, or a list of ready-made shards.

A TSV (url TAB caption), a folder of images with captions beside them, webdataset tars or img2dataset's output; here, over http
or in an object store. The folder is input, versioned by DVC, so it says all that a run depends on: images lie in it, and
shards are named by size and version.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import Any, Final

from braceexpand import braceexpand

from rglcd.errors import InputError
from rglcd.sharding.holdout import PROMPTS, REFERENCE, HeldOut, choose, kept, read_prompts, write_prompts, write_reference
from rglcd.sharding.image_folder import found_in, index_line, place_image
from rglcd.sharding.index_layout import check_layout
from rglcd.sharding.source import IMAGES, INDEX, in_utf8, read_lines
from rglcd.sharding.source_folder import sole_writer
from rglcd.sharding.texts import storable
from rglcd.sharding.third_party_tars import LISTING, ReadyShard
from rglcd.store.connection import require_bucket
from rglcd.store.disk_space import is_disk_full
from rglcd.store.manifest import sha256_of, write_json
from rglcd.store.refusals import one_line
from rglcd.store.staging import STAGING, remove_stale_staging, staging_file

_TOY: Final = "corpus.json"
_MAX_SHARDS: Final = 1_000_000


def use(
    what: str, folder: Path, *, prompts: Path | None = None, reference: int | None = None, caption_encoding: str | None = None
) -> list[str]:
    """Make ``folder`` a source of ``what``; returns lines that say what it holds.

    ``reference`` rows are held out of the index as ``reference/``, with their captions as ``prompts/heldout.txt`` unless
    ``prompts`` names a file of others. Without these two, prompts and references in ``folder`` are left alone. Captions of an index or
    beside images that are not UTF-8 and are in ``caption_encoding`` become UTF-8.

    ``what`` is a ``.tsv``, one or more ``.tar`` (braces expand: ``{00000..01242}.tar``), or a folder of tars or of images; a
    path or a URL that fsspec knows. Raises :class:`InputError` for anything else, and for a folder that holds the toy's corpus;
    :class:`TryAgain` while another command makes ``folder``.
    """
    if (folder / _TOY).is_file():
        raise InputError(f"{folder} holds the toy corpus; name another folder (--folder), or move it away first")
    _refuse_what_would_be_lost(what, folder / IMAGES)
    captions = None if prompts is None else read_prompts(prompts)
    with sole_writer(folder):
        try:
            held, said = _use(what, folder, reference, caption_encoding)
        except BaseException:
            shutil.rmtree(_staged_images(folder), ignore_errors=True)
            remove_stale_staging(folder)
            raise
        if captions is None and held is not None:
            captions = list(held.captions)
        if captions is not None:
            write_prompts(folder, captions)
            said.append(f"{folder / PROMPTS} holds {len(captions)} prompts")
    missing = [str(path) for path in (folder / PROMPTS, folder / REFERENCE / INDEX) if not path.is_file()]
    if missing:
        said.append(f"evaluate reads {' and '.join(missing)} too: --reference N holds out N rows of an index or a folder for both")
    return [storable(line) for line in said]  # a path may hold bytes that no terminal takes


def _refuse_what_would_be_lost(what: str, images: Path) -> None:
    """Raise :class:`InputError` for pictures or tars that lie in ``images``, or around it: it is made anew, and what was there goes."""
    if "://" in what or what.endswith(".tsv"):
        return
    taken, made = Path(what).resolve(), images.resolve()
    if taken.is_relative_to(made) or (images.exists() and taken.is_dir() and made.is_relative_to(taken)):
        raise InputError(
            f"{what} and {images} overlap, and {images} is made anew of what is taken: move your files out of it, or name another --folder"
        )


def _use(what: str, folder: Path, reference: int | None, encoding: str | None) -> tuple[HeldOut | None, list[str]]:
    require_bucket(what)
    if what.endswith(".tsv"):
        return _use_index(what, folder, reference, encoding)
    shards = list(_shards_of(what))
    if shards and reference is not None:
        raise InputError(
            f"--reference takes rows of an index or of a folder of images, and {what} is ready-made tars, which are read whole: leave one "
            f"tar out, and put its images and an index of them in {folder / REFERENCE}"
        )
    if shards and encoding is not None:
        raise InputError(
            f"--caption-encoding makes an index of UTF-8, and {what} is ready-made tars, which are read as they are: leave it out, and say "
            f"what they are in with: rglcd config set sharding.caption_encoding={encoding}"
        )
    if shards:
        write_json(folder / LISTING, {"shards": [_listed(shard) for shard in shards]})
        _forget(folder, INDEX, IMAGES)
        said = [f"{folder} lists {len(shards)} ready-made shards, {sum(shard.bytes for shard in shards):,} bytes"]
        num_images = len(found_in(Path(what)).images) if Path(what).is_dir() else 0
        if num_images:
            said.append(f"left out: {num_images} images beside the tars of {what}; move the tars away to take the images instead")
        return None, said
    if "://" not in what and Path(what).is_dir():
        return _use_images(Path(what), folder, reference, encoding)
    raise InputError(f"{what} is neither a .tsv, nor .tar files, nor a folder of tars or images")


def _use_index(what: str, folder: Path, reference: int | None, encoding: str | None) -> tuple[HeldOut | None, list[str]]:
    with staging_file(folder / INDEX) as staging:
        _copy(what, staging)
        odd = check_layout(staging, called=what)
        if encoding is not None:
            _rewrite(staging, (in_utf8(line, encoding) for line in read_lines(staging)))
        held = None if reference is None else _hold_out(staging, folder, folder, reference)
    _forget(folder, LISTING)
    said = [f"{folder / INDEX} is a copy of {what}: {(folder / INDEX).stat().st_size:,} bytes"]
    return held, [*said, *odd, *_said_of(held, folder)]


def _hold_out(index: Path, pictures: Path, folder: Path, count: int, *, called: str | None = None) -> HeldOut:
    """Take ``count`` rows out of ``index``, which is not yet in force, and publish them as the reference of ``folder``."""
    held = choose(index, pictures, count, called=called)
    _rewrite(index, kept(read_lines(index), held))
    write_reference(folder, held, pictures=pictures)
    return held


def _rewrite(index: Path, lines: Iterable[bytes]) -> None:
    """Make ``index``, from which ``lines`` may come, one of these lines."""
    other = index.with_name(f"{index.name}.new{STAGING}")  # goes with the staging files, should it not be finished
    with other.open("wb") as rows:
        rows.writelines(line + b"\n" for line in lines)
    other.replace(index)


def _said_of(held: HeldOut | None, folder: Path) -> list[str]:
    return [] if held is None else [f"{folder / REFERENCE} holds {len(held.urls)} pictures that are not in the index"]


def _use_images(images: Path, folder: Path, reference: int | None, encoding: str | None) -> tuple[HeldOut | None, list[str]]:
    """Images by name, each with the caption in the file beside it; one without is a row without a caption."""
    found = found_in(images)
    if not found.images:
        raise InputError("; ".join([f"{images} holds neither tars nor images", *found.left_out]))
    staging = _staged_images(folder)
    shutil.rmtree(staging, ignore_errors=True)
    with staging_file(folder / INDEX) as index, index.open("wb") as rows:
        for image in found.images:
            rows.write(index_line(f"{IMAGES}/{place_image(image, staging)}", image.caption, encoding))
        rows.flush()
        held = None if reference is None else _hold_out_images(index, staging, folder, reference, called=str(images))
        _forget(folder, IMAGES)
        staging.rename(folder / IMAGES)
    _forget(folder, LISTING)
    said = [f"{folder / INDEX} names {len(found.images) - (0 if held is None else len(held.urls))} images of {images}"]
    if without := sum(image.caption is None for image in found.images):
        said.append(
            f"{without} {'picture has' if without == 1 else 'pictures have'} no caption beside: shard counts and leaves out such rows"
        )
    return held, [*said, *found.left_out, *_said_of(held, folder)]


def _staged_images(folder: Path) -> Path:
    return folder / f".{IMAGES}{STAGING}"


def _hold_out_images(index: Path, staging: Path, folder: Path, count: int, *, called: str) -> HeldOut:
    """As :func:`_hold_out`; the images that are held out leave those to train on."""
    pictures = staging.with_name(f".held{STAGING}")
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    staging.rename(pictures / IMAGES)
    try:
        held = _hold_out(index, pictures, folder, count, called=called)
        for url in held.urls:
            (pictures / url).unlink()
        (pictures / IMAGES).rename(staging)
    finally:
        shutil.rmtree(pictures)
    return held


def _shards_of(what: str) -> Iterator[ReadyShard]:
    if what.endswith(".tar"):
        for name in _expanded(what):
            yield _described(name)
    else:
        filesystem, root = _filesystem(what)
        for path in _tars_listed(filesystem, root.rstrip("/"), called=what):
            rows = f"{path.removesuffix('.tar')}.parquet"
            shard = _described(filesystem.unstrip_protocol(path))
            beside = _described(filesystem.unstrip_protocol(rows)) if filesystem.exists(rows) else None
            yield ReadyShard(shard.uri, shard.bytes, shard.version, beside)


def _expanded(what: str) -> list[str]:
    """The names that the braces in ``what`` stand for; a file that is called so, braces and all, is that file."""
    if "{" not in what or _is_there(what):
        return [what]
    try:
        names = list(islice(braceexpand(what), _MAX_SHARDS + 1))
    except ValueError as error:  # of braceexpand, and of range() for a step of 0
        raise InputError(f"{what}: {error}; {{0000..0012}} stands for thirteen numbers, and no file has just this name") from None
    if len(names) > _MAX_SHARDS:
        raise InputError(f"{what} names more than {_MAX_SHARDS} shards")
    return names


def _is_there(uri: str) -> bool:
    if "://" not in uri:
        return Path(uri).is_file()
    filesystem, path = _filesystem(uri)
    try:
        return bool(filesystem.exists(path))
    except Exception:  # each of fsspec's file systems raises its own library's errors; what is wrong is said when the file is read
        return False


def _tars_listed(filesystem: Any, root: str, *, called: str) -> list[str]:
    """The tars in ``root``. Raises :class:`InputError` where another machine shows none: no credentials, no permission, no such host."""
    try:
        return _tars_in(filesystem, root)
    except Exception as error:  # each of fsspec's file systems raises its own library's errors
        if "://" not in called:
            raise
        raise InputError(f"{called} cannot be listed: {one_line(error)}") from None


def _tars_in(filesystem: Any, root: str) -> list[str]:
    """The tars in the folder or prefix ``root``, which may be a pattern if nothing is called so."""
    if has_magic(root):
        with suppress(OSError):  # no such folder
            return sorted(path for path in filesystem.ls(root, detail=False) if path.endswith(".tar"))
    return sorted(filesystem.glob(f"{root}/*.tar"))


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
        if is_disk_full(error):
            raise
        raise InputError(f"{what} cannot be fetched: {' '.join(str(error).split())[:300]}") from None


def _forget(folder: Path, *names: str) -> None:
    """Remove what an earlier source of another kind has left."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
