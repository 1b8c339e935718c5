"""Hold out rows of an index: they become the reference images and the prompts of the evaluation, and are not trained on."""

import heapq
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Final

from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason, RowRejectedError
from rglcd.sharding.decoding import decode
from rglcd.sharding.source import IMAGES, INDEX, parse_row, read_image, read_lines
from rglcd.store.staging import STAGING, publish_folder, write_text

REFERENCE: Final = "reference"
PROMPTS: Final = "prompts/heldout.txt"


@dataclass(frozen=True)
class HeldOut:
    """Rows that are held out, in the order of the evaluation: their urls, and their captions, each on one line."""

    urls: tuple[str, ...]
    captions: tuple[str, ...]


def choose(index: Path, folder: Path, count: int, *, called: str | None = None) -> HeldOut:
    """``count`` rows of ``index`` whose pictures lie below ``folder`` and can be decoded, no picture's url twice.

    Which rows is decided by a digest of each line: the same index gives the same rows, whatever order it has. Raises
    :class:`InputError` if there are too few, or none would be left to train on; it calls the folder ``called``.
    """
    if count < 2:
        raise InputError(f"--reference {count}: a Fréchet distance needs at least two real images")
    captions, lost = dict[str, str](), dict[Reason, int]()  # no pictures: those of a large reference do not fit into memory
    for line in _in_drawn_order(index, count):
        try:
            row = parse_row(line)
            if row.url in captions:
                continue
            decode(read_image(row.url, folder))
        except RowRejectedError as rejected:
            lost[rejected.reason] = lost.get(rejected.reason, 0) + 1
            continue
        captions[row.url] = _on_one_line(row.caption)
        if len(captions) == count:
            break
    held = HeldOut(tuple(captions), tuple(captions.values()))
    if len(captions) < count:
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(lost.items()))
        web = "; pictures on the web cannot be held out here: take them from a folder" if Reason.NOT_DOWNLOADED in lost else ""
        place = f"a picture below {folder if called is None else called} and a caption"
        raise InputError(f"--reference {count}: only {len(captions)} rows have {place}{f' ({reasons})' if reasons else ''}{web}")
    if not any(True for _ in kept(read_lines(index), held)):
        raise InputError(f"--reference {count} would hold out every row: nothing would be left to train on")
    return held


def kept(lines: Iterable[bytes], held: HeldOut) -> Iterator[bytes]:
    """The lines that stay in the index: those of other pictures than the ones held out, and of no held-out caption."""
    urls, captions = frozenset(held.urls), frozenset(held.captions)
    for line in lines:
        try:
            row = parse_row(line)
        except RowRejectedError:
            yield line  # shard counts it and says why
            continue
        if row.url not in urls and _on_one_line(row.caption) not in captions:
            yield line


def write_reference(folder: Path, held: HeldOut, *, pictures: Path) -> None:
    """``reference/index.tsv`` and its images, which lie below ``pictures``, in place of what was there."""
    staging = folder / f".{REFERENCE}{STAGING}"
    shutil.rmtree(staging, ignore_errors=True)
    (staging / IMAGES).mkdir(parents=True)
    rows = []
    for number, (url, caption) in enumerate(zip(held.urls, held.captions, strict=True)):
        name = f"{IMAGES}/{number:05d}{PurePosixPath(url).suffix}"
        (staging / name).write_bytes(read_image(url, pictures))
        rows.append(f"{name}\t{caption}\n")
    (staging / INDEX).write_text("".join(rows), encoding="utf-8", newline="")
    publish_folder(staging, folder / REFERENCE)


def write_prompts(folder: Path, captions: Iterable[str]) -> None:
    """``prompts/heldout.txt``, one a line."""
    (folder / PROMPTS).parent.mkdir(parents=True, exist_ok=True)
    write_text(folder / PROMPTS, "".join(f"{caption}\n" for caption in captions))


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one a line. Raises :class:`InputError` if there is none."""
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"--prompts {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {path}: {error}") from None
    if not prompts:
        raise InputError(f"--prompts {path} holds no prompt: write one a line")
    return prompts


def _on_one_line(caption: str) -> str:
    """Prompts are read a line each, and text knows more ends of lines than an index: U+2028, form feeds."""
    return " ".join(caption.splitlines())


def _in_drawn_order(index: Path, count: int) -> Iterator[bytes]:
    """The lines of ``index`` by their digests; only as many are held in memory as are likely to be asked for."""
    wanted, last = 2 * count + 1000, (b"", b"")
    while True:
        drawn = heapq.nsmallest(wanted, (pair for line in read_lines(index) if (pair := (sha256(line).digest(), line)) > last))
        yield from (line for _, line in drawn)
        if len(drawn) < wanted:
            return
        last, wanted = drawn[-1], 8 * wanted
