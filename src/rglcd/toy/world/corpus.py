"""The toy's source folder in CC12M's layout: `index.tsv` of path and caption, images, prompt sets; as the web has them, good and bad."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.toy.corpus import HELD_OUT_PROMPTS, INDEX_FILE, REFERENCE, SETTINGS_FILE, TRAIN_PROMPTS
from rglcd.toy.scene import encode_png
from rglcd.toy.world.flaws import Flaw
from rglcd.toy.world.scene import Scene, caption, shuffled, split
from rglcd.toy.world.web import WEB, Row, draw_rows, rows_of, world_digest

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
