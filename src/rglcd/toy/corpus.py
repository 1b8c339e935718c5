"""The toy's source folder, laid out as CC12M's is: `index.tsv` of address and caption, pictures, prompt sets."""

import json
import shutil
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.toy.scene import Scene, caption, draw_batch, encode_png, shuffled, split

INDEX_FILE: Final = "index.tsv"
SETTINGS_FILE: Final = "corpus.json"
HELD_OUT_PROMPTS: Final = "prompts/heldout.txt"
TRAIN_PROMPTS: Final = "prompts/train.txt"


def write_corpus(folder: Path, *, num_images: int = 8192, seed: int = 0) -> None:
    """Write the source folder: pictures of train captions only, and both prompt sets, a caption a line.

    The bytes depend on `num_images` and `seed` alone. A folder already written with these is left as it is; another
    corpus is replaced once the new one is whole.

    Raises:
        InputError: the folder holds something else, which is not replaced.
    """
    settings = json.dumps({"num_images": num_images, "seed": seed}, indent=2) + "\n"
    marker = folder / SETTINGS_FILE
    if marker.is_file() and marker.read_text() == settings:
        return
    if not marker.is_file() and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something other than a toy corpus; name another folder, or empty this one")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "images").mkdir(parents=True)
    (aside / "prompts").mkdir()
    scenes = split()
    _write_pictures(aside, scenes.train, num_images, seed)
    _write_prompts(aside / HELD_OUT_PROMPTS, scenes.held_out, seed)
    _write_prompts(aside / TRAIN_PROMPTS, scenes.train, seed)
    (aside / SETTINGS_FILE).write_text(settings)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _write_pictures(folder: Path, train: tuple[Scene, ...], num_images: int, seed: int) -> None:
    """The order shuffles anew in every pass over the captions, so that any stretch of pictures is a fair sample."""
    scenes = [scene for turn in range(-(-num_images // len(train))) for scene in shuffled(train, f"{seed}/{turn}")]
    scenes = scenes[:num_images]
    pictures = draw_batch(scenes, [seed * 1_000_000 + number for number in range(num_images)])
    rows = []
    for number, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        address = f"images/{number:05d}.png"
        (folder / address).write_bytes(encode_png(picture))
        rows.append(f"{address}\t{caption(scene)}\n")
    (folder / INDEX_FILE).write_text("".join(rows))


def _write_prompts(path: Path, scenes: tuple[Scene, ...], seed: int) -> None:
    path.write_text("".join(f"{caption(scene)}\n" for scene in shuffled(scenes, str(seed))))
