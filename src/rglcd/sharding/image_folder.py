"""A folder of images as a source: which of its files are images, the caption beside each, and the name that the index can hold."""

import codecs
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Final

from rglcd.extras import install_command
from rglcd.sharding import heic
from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.source import IMAGE_EXTENSIONS, MAX_ROW_BYTES
from rglcd.sharding.texts import CAPTION_EXTENSIONS, MAX_JSON_BYTES, facts_in, text_of
from rglcd.store.staging import STAGING

_SUFFIXES: Final = tuple(f".{extension}" for extension in (*CAPTION_EXTENSIONS, "json"))
_SHOWN: Final = 10
_MAX_NAME_BYTES: Final = 255  # of Linux's file systems
_NO_TEXT: Final = codecs.BOM_UTF16_LE + b"?"  # half of a character: what UTF-16's mark begins is read in no other encoding
_UNHOLDABLE: Final = re.compile("[\t\n\r\\\\\udc80-\udcff]")
"""What a path in an index cannot hold: its separators, a backslash, bytes of a name that is not UTF-8."""
_LINE: Final = bytes.maketrans(b"\t\n\r", b"   ")


@dataclass(frozen=True)
class FoundImage:
    """An image: its ``name`` below the folder, the regular ``file`` that it or its link is, and the file that holds its caption."""

    name: str
    file: Path
    caption: Path | None


@dataclass(frozen=True)
class FoundFiles:
    """What a folder holds; ``left_out`` says in a line each what is not taken."""

    images: tuple[FoundImage, ...]
    left_out: tuple[str, ...]


def found_in(folder: Path) -> FoundFiles:
    """The images below ``folder``, by name. A link is the file that it leads to, if that lies in the folder too."""
    files, num_links = _files(folder)
    beside = {(path.parent, path.stem, path.suffix.lower()): file for path, file in files.items() if path.suffix.lower() in _SUFFIXES}
    extensions = IMAGE_EXTENSIONS | (heic.EXTENSIONS if heic.is_readable() else frozenset())
    paths = [path for path in files if path.suffix[1:].lower() in extensions]
    taken = set[tuple[Path, str, str]]()
    images = []
    for path in paths:
        place = next((place for suffix in _SUFFIXES if (place := (path.parent, path.stem, suffix)) in beside), None)
        images.append(FoundImage(path.relative_to(folder).as_posix(), files[path], None if place is None else beside[place]))
        taken |= set() if place is None else {place}
    others = files.keys() - frozenset(paths)
    skipped = Counter(
        path.suffix.lower() or "without a suffix" for path in others if (path.parent, path.stem, path.suffix.lower()) not in taken
    )
    return FoundFiles(tuple(images), (*_said_of_links(num_links, folder), *_said_of_skipped(skipped)))


def place_image(image: FoundImage, folder: Path) -> str:
    """Put ``image`` into ``folder``, linked or copied, HEIC as a JPEG; returns its name there, which an index can hold.

    HEIC that cannot be decoded goes in as it is, for ``shard`` to count.
    """
    is_heic = PurePosixPath(image.name).suffix[1:].lower() in heic.EXTENSIONS
    jpeg = heic.as_jpeg(image.file) if is_heic else None
    name = name_in_index(image.name if jpeg is None else f"{image.name}.jpg", folder)
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if jpeg is not None:
        target.write_bytes(jpeg)
        return name
    try:
        os.link(image.file, target)
    except OSError:  # another disk, or one without links
        with suppress(PermissionError, FileNotFoundError):  # then shard says so of this row: missing_file
            shutil.copyfile(image.file, target)
    return name


def index_line(name: str, caption: Path | None, encoding: str | None) -> bytes:
    """The line of an index for the image ``name``, whose caption, if it is not UTF-8, is in ``encoding``.

    A caption that is no text stays as it is, so that ``shard`` counts it as such.
    """
    return name.encode() + b"\t" + (b"" if caption is None else _caption_bytes(caption, encoding)) + b"\n"


def name_in_index(name: str, folder: Path) -> str:
    """``name`` as an index can hold it, and no file in ``folder`` has it: what it cannot hold is written %E9."""
    held = _UNHOLDABLE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", name)
    too_long = any(len(part.encode()) > _MAX_NAME_BYTES for part in PurePosixPath(held).parts)
    if too_long or (folder / held).exists():
        return sha256(os.fsencode(name)).hexdigest() + PurePosixPath(held).suffix
    return held


def _files(folder: Path) -> tuple[dict[Path, Path], int]:
    """The regular files below ``folder`` in the order of their names, each with itself or what it is a link to; and the other links."""
    root, files, num_links = _root(folder), dict[Path, Path](), 0
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") and path.name.endswith(STAGING):
            continue  # a command's own, such as its lock on the folder to make, which may lie in this one
        if not path.is_symlink():
            if path.is_file():
                files[path] = path
        elif (file := _followed(path, root)) is not None:
            files[path] = file
        else:
            num_links += 1
    return files, num_links


def _root(folder: Path) -> Path:
    """Within which links are followed: the folder; of a revision in the Hugging Face hub's cache, which is links, its repository."""
    real = folder.resolve()
    for parent in real.parents:
        if real.is_relative_to(parent / "snapshots") and (parent / "blobs").is_dir():
            return parent
    return real


def _followed(path: Path, root: Path) -> Path | None:
    try:
        file = path.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or, before Python 3.13, in a circle
        return None
    return file if file.is_relative_to(root) and file.is_file() else None


def _caption_bytes(path: Path, encoding: str | None) -> bytes:
    is_json = path.suffix.lower() == ".json"
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES if is_json else MAX_ROW_BYTES + 1)
    except PermissionError:
        return _NO_TEXT
    try:
        if is_json:
            given = facts_in(data, encoding).get("caption")
            text = given if isinstance(given, str) else ""
        else:
            text = text_of(data, encoding)
    except RowRejectedError:
        return _NO_TEXT if is_json else data.translate(_LINE)
    return " ".join(text.split()).encode(errors="surrogatepass")  # half of a surrogate pair is no UTF-8, and refused as such


def _said_of_links(count: int, folder: Path) -> list[str]:
    return (
        [f"left out: {count} links that lead out of {folder}, to a folder or nowhere (cp -rL copies what links lead to)"] if count else []
    )


def _said_of_skipped(skipped: Mapping[str, int]) -> list[str]:
    if not skipped:
        return []
    largest = sorted(skipped.items(), key=lambda pair: (-pair[1], pair[0]))
    counts = [f"{count} {suffix}" for suffix, count in largest[:_SHOWN]]
    rest = sum(count for _, count in largest[_SHOWN:])
    said = f"skipped: {', '.join(counts + ([f'{rest} others'] if rest else []))} (images are .{' .'.join(sorted(IMAGE_EXTENSIONS))})"
    if not any(suffix[1:] in heic.EXTENSIONS for suffix in skipped):
        return [said]
    return [said, f"HEIC is read once its decoder is there: {install_command(heic.EXTRA)}, and then the same command again"]
