"""The toy's source folder in CC12M's layout: `index.tsv` of path and caption, images, prompt sets; as the web has them, good and bad."""

import json
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rglcd.errors import InputError
from rglcd.toy.flaws import Flaw
from rglcd.toy.scene import Scene, caption, shuffled, split
from rglcd.toy.web import WEB, Row, draw_rows, rows_of, world_digest

INDEX_FILE: Final = "index.tsv"
SETTINGS_FILE: Final = "corpus.json"
HELD_OUT_PROMPTS: Final = "prompts/heldout.txt"
TRAIN_PROMPTS: Final = "prompts/train.txt"
REFERENCE: Final = "reference"

# Pictures of the reference are drawn with seeds that no training picture has.
_REFERENCE_SEEDS: Final = 500_000


def write_corpus(folder: Path, *, num_images: int = 8192, num_reference: int = 1024, seed: int = 0) -> None:
    """Write the source folder: web-like images of train captions only, both prompt sets, and neat reference images.

    The reference, `reference/index.tsv` with its images, shows the held-out prompts in their order, over and over. The
    bytes depend on the numbers, `seed` and how this version draws. A folder already written with these is kept; another
    corpus is replaced once the new one is complete.

    Raises:
        InputError: the folder holds something else, which is not replaced.
    """
    recipe = {"num_images": num_images, "num_reference": num_reference, "seed": seed, "world": world_digest()}
    settings = json.dumps(recipe, indent=2) + "\n"
    marker = folder / SETTINGS_FILE
    if marker.is_file() and marker.read_text() == settings:
        return
    if not marker.is_file() and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something other than a toy corpus; name another folder, or empty this one")
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "prompts").mkdir(parents=True)
    first_seed = seed * 1_000_000
    _write_pictures(staging, rows_of(split().train, count=num_images, first_seed=first_seed, mixture=WEB), first_seed=first_seed)
    held_out = shuffled(split().held_out, str(seed))
    shown = [held_out[number % len(held_out)] for number in range(num_reference)]
    reference = [Row(scene, scene, Flaw.NONE) for scene in shown]
    _write_pictures(staging / REFERENCE, reference, first_seed=first_seed + _REFERENCE_SEEDS)
    _write_prompts(staging / HELD_OUT_PROMPTS, held_out)
    _write_prompts(staging / TRAIN_PROMPTS, shuffled(split().train, str(seed)))
    (staging / SETTINGS_FILE).write_text(settings)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _write_pictures(folder: Path, rows: Sequence[Row], *, first_seed: int) -> None:
    """An index of what captions claim, and the pictures, one for each row."""
    (folder / "images").mkdir(parents=True)
    pictures = draw_rows(rows, range(first_seed, first_seed + len(rows)))
    lines = []
    for number, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        address = f"images/{number:05d}.png"
        (folder / address).write_bytes(encode_png(picture))
        lines.append(f"{address}\t{caption(row.claimed)}\n")
    (folder / INDEX_FILE).write_text("".join(lines))


def _write_prompts(path: Path, scenes: Sequence[Scene]) -> None:
    path.write_text("".join(f"{caption(scene)}\n" for scene in scenes))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """An (H, W, 3) uint8 picture as PNG with stored blocks: the bytes do not depend on a compressor's build."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    assert len(rows) < 1 << 16, "one stored block holds at most 65,535 bytes"
    stored = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
