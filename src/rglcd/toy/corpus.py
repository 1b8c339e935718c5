"""The toy's source folder in CC12M's layout: `index.tsv` of path and caption, images, prompt sets."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.toy.scene import Scene, caption, draw_batch, encode_png, shuffled, split, world_digest

INDEX_FILE: Final = "index.tsv"
SETTINGS_FILE: Final = "corpus.json"
HELD_OUT_PROMPTS: Final = "prompts/heldout.txt"
TRAIN_PROMPTS: Final = "prompts/train.txt"
REFERENCE: Final = "reference"

# Pictures of the reference are drawn with seeds that no training picture has.
_REFERENCE_SEEDS: Final = 500_000


def write_corpus(folder: Path, *, num_images: int = 8192, num_reference: int = 1024, seed: int = 0) -> None:
    """Write the source folder: images of train captions only, both prompt sets, and reference images.

    The reference, `reference/index.tsv` with its images, shows the held-out prompts in their order, over and over. The
    bytes depend on the numbers, `seed` and how this version draws. A folder already written with these is kept; another
    corpus is replaced once the new one is complete.

    Raises:
        InputError: the folder holds something else, which is not replaced.
    """
    settings = (
        json.dumps({"num_images": num_images, "num_reference": num_reference, "seed": seed, "world": world_digest()}, indent=2) + "\n"
    )
    marker = folder / SETTINGS_FILE
    if marker.is_file() and marker.read_text() == settings:
        return
    if not marker.is_file() and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something other than a toy corpus; name another folder, or empty this one")
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "prompts").mkdir(parents=True)
    scenes = split()
    # The order shuffles anew in every pass over the captions, so that any stretch of pictures is a fair sample.
    turns = range(-(-num_images // len(scenes.train)))
    training = [scene for turn in turns for scene in shuffled(scenes.train, f"{seed}/{turn}")][:num_images]
    _write_pictures(staging, training, first_seed=seed * 1_000_000)
    held_out = shuffled(scenes.held_out, str(seed))
    reference = [held_out[number % len(held_out)] for number in range(num_reference)]
    _write_pictures(staging / REFERENCE, reference, first_seed=seed * 1_000_000 + _REFERENCE_SEEDS)
    _write_prompts(staging / HELD_OUT_PROMPTS, held_out)
    _write_prompts(staging / TRAIN_PROMPTS, shuffled(scenes.train, str(seed)))
    (staging / SETTINGS_FILE).write_text(settings)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _write_pictures(folder: Path, scenes: Sequence[Scene], *, first_seed: int) -> None:
    """An index and its pictures, one for each scene."""
    (folder / "images").mkdir(parents=True)
    pictures = draw_batch(scenes, [first_seed + number for number in range(len(scenes))])
    rows = []
    for number, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        address = f"images/{number:05d}.png"
        (folder / address).write_bytes(encode_png(picture))
        rows.append(f"{address}\t{caption(scene)}\n")
    (folder / INDEX_FILE).write_text("".join(rows))


def _write_prompts(path: Path, scenes: Sequence[Scene]) -> None:
    path.write_text("".join(f"{caption(scene)}\n" for scene in scenes))
