"""MS-COCO 2014's validation split as reference images and prompts, chosen by a rule that is written down.

The rule: images are drawn by the SHA-256 of ``<seed>:<image id>``, smallest first, so that 5,000 are among the 10,000 of the same seed and
these among the 30,000; they are then ordered by id; the caption of an image is that of its smallest annotation id, runs of blanks being one
blank. Published numbers on "COCO-30k" differ by which 30,000 images and captions were taken (github.com/Shenyi-Z/ToCa/issues/8).

Format: ``captions_val2014.json`` of annotations_trainval2014.zip (cocodataset.org/#format-data): ``images`` with id and file_name,
``annotations`` with id, image_id and caption; the files lie in ``val2014/``.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rglcd.errors import InputError
from rglcd.sharding.source import IMAGES, INDEX
from rglcd.sharding.source_folder import sole_writer
from rglcd.store.files import fetch_folder, is_remote
from rglcd.store.manifest import sha256_of, write_json
from rglcd.store.staging import STAGING, publish_folder, write_text

ANNOTATIONS: Final = "annotations/captions_val2014.json"
PICTURES: Final = "val2014"
RULE: Final = "smallest sha256 of 'seed:image id', ordered by image id; the caption of the smallest annotation id, blanks joined"


@dataclass(frozen=True)
class ChosenImage:
    """One image of the split, with the one of its captions that the rule takes."""

    image_id: int
    file_name: str
    caption: str


def use_coco(where: str, folder: Path, *, count: int, seed: int) -> list[str]:
    """Make ``count`` images of the split at ``where`` (a folder, or s3://) a reference within the source ``folder``; returns what to say.

    Raises :class:`InputError` for annotations in another format, fewer images than ``count``, and images that are not there.
    """
    name = f"coco2014-val-{count}" + (f"-seed{seed}" if seed else "")
    with sole_writer(folder):
        staging = folder / f".{name}{STAGING}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            annotations = _fetched_annotations(where, staging / ".annotations")
            digest = sha256_of(annotations)
            chosen = choose(_parsed(annotations), count=count, seed=seed, called=f"{where}/{ANNOTATIONS}")
            shutil.rmtree(staging / ".annotations")
            _fetch_pictures(where, staging, chosen)
            rows = "".join(f"{IMAGES}/{image.file_name}\t{image.caption}\n" for image in chosen)
            (staging / INDEX).write_text(rows, encoding="utf-8", newline="")
            about = {"set": "MS-COCO 2014 val", "images": count, "seed": seed, "rule": RULE, "annotations_sha256": digest}
            write_json(staging / "about.json", about)
            publish_folder(staging, folder / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        (folder / "prompts").mkdir(exist_ok=True)
        write_text(folder / "prompts" / f"{name}.txt", "".join(f"{image.caption}\n" for image in chosen))
    return [
        f"{folder / name} holds {count:,} images of {where}, their captions are in {folder / 'prompts' / name}.txt; rule: {RULE}",
        f"to use them: rglcd config set evaluation.reference={name}/{INDEX} evaluation.prompts=prompts/{name}.txt "
        f"evaluation.num_images={count}",
    ]


def choose(annotations: dict[str, Any], *, count: int, seed: int, called: str) -> list[ChosenImage]:
    """The images that the rule takes, in order. Raises :class:`InputError` naming the entry that is not in the published format."""
    captions: dict[int, tuple[int, str]] = {}
    for number, entry in enumerate(_entries(annotations, "annotations", ("id", "image_id", "caption"), called)):
        image, key = int(entry["image_id"]), int(entry["id"])
        caption = " ".join(str(entry["caption"]).split())
        if not caption:
            raise InputError(f"{called}: annotations[{number}] (id {key}) has an empty caption")
        captions[image] = min(captions.get(image, (key, caption)), (key, caption))
    names = {int(entry["id"]): str(entry["file_name"]) for entry in _entries(annotations, "images", ("id", "file_name"), called)}
    odd = next((name for name in names.values() if "/" in name or name.startswith(".") or "\t" in name or "\n" in name), None)
    if odd is not None:
        raise InputError(f"{called}: file_name {odd!r} is no plain name of a file")
    captioned = sorted(names.keys() & captions.keys())
    if len(captioned) < count:
        raise InputError(f"--count {count}: {called} has {len(captioned):,} images with captions")
    drawn = sorted(captioned, key=lambda number: hashlib.sha256(f"{seed}:{number}".encode()).digest())[:count]
    return [ChosenImage(image, names[image], captions[image][1]) for image in sorted(drawn)]


def _entries(annotations: dict[str, Any], name: str, keys: tuple[str, ...], called: str) -> list[dict[str, Any]]:
    entries = annotations.get(name)
    if not isinstance(entries, list):
        raise InputError(f"{called}: expected a list called {name}, as captions_val2014.json has it")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not set(keys) <= entry.keys():
            raise InputError(f"{called}: {name}[{number}] lacks one of {', '.join(keys)}")
    return entries


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{ANNOTATIONS} is not JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise InputError(f"{ANNOTATIONS} must be a JSON object, as captions_val2014.json is")
    return found


def _fetched_annotations(where: str, place: Path) -> Path:
    """The file, copied into the folder ``place``."""
    if is_remote(where):
        if not fetch_folder(where, place, keep=lambda name: name == ANNOTATIONS):
            raise InputError(f"{where} has no {ANNOTATIONS}: unpack annotations_trainval2014.zip there, and val2014.zip")
        return place / ANNOTATIONS
    found = Path(where) / ANNOTATIONS
    if not found.is_file():
        raise InputError(f"{found} is missing: unpack annotations_trainval2014.zip into {where}, and val2014.zip")
    (place / ANNOTATIONS).parent.mkdir(parents=True)
    return Path(shutil.copyfile(found, place / ANNOTATIONS))


def _fetch_pictures(where: str, staging: Path, chosen: list[ChosenImage]) -> None:
    wanted = {f"{PICTURES}/{image.file_name}" for image in chosen}
    (staging / IMAGES).mkdir()
    if is_remote(where):
        fetch_folder(where, staging, keep=lambda name: name in wanted)
        for name in wanted:
            if (staging / name).is_file():
                (staging / name).rename(staging / IMAGES / Path(name).name)
        shutil.rmtree(staging / PICTURES, ignore_errors=True)
    else:
        for name in sorted(wanted):
            if (Path(where) / name).is_file():
                shutil.copyfile(Path(where) / name, staging / IMAGES / Path(name).name)
    missing = [name for name in sorted(wanted) if not (staging / IMAGES / Path(name).name).is_file()]
    if missing:
        raise InputError(f"{where} lacks {len(missing):,} of the {len(wanted):,} images, {missing[0]} the first: unpack val2014.zip there")
