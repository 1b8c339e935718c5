"""Where the official scripts look for images, and in what form: which drawn images go into which file.

hpsv2      <style>/<i:05d>.jpg, one of each prompt                        (hpsv2/evaluation.py: BenchmarkDataset; every folder is a style)
geneval    <i:05d>/metadata.jsonl and <i:05d>/samples/<n:05d>.png, four   (evaluation/evaluate_images.py, generation/diffusers_generate.py)
dpg        <item_id>.png, four in a grid of two by two, row by row        (dpg_bench/compute_dpg_bench.py; every file is an item)
compbench  <category>/samples/<prompt>_<n:06d>.png, ten of each           (BLIPvqa_eval/BLIP_vqa.py, GORS_finetune/inference_eval.py)
flat       <number>.png, with metadata.jsonl, as Hugging Face's imagefolder reads it
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from rglcd.errors import InputError
from rglcd.evaluation.prompt_formats import Prompt
from rglcd.evaluation.prompt_sets import PromptSet

USUAL_COUNT: Final = {"hpsv2": 1, "geneval": 4, "dpg": 4, "compbench": 10, "flat": 1}
"""Images of each prompt, as the scripts have it, by layout."""

LAYOUTS: Final = tuple(USUAL_COUNT)

_LONGEST_NAME: Final = 255
"""Bytes of a file name on Linux's file systems."""


@dataclass(frozen=True)
class ImageFile:
    """A file to write, relative to the folder of the export, of the images with these numbers: one, or four side by side and below."""

    path: PurePosixPath
    images: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """All files of an export: images, and texts by path. ``notes`` say where a name could not be the prompt itself."""

    files: tuple[ImageFile, ...]
    texts: dict[PurePosixPath, str]
    notes: tuple[str, ...] = ()


def lay_out(layout: str, prompts: PromptSet, *, count: int) -> Layout:
    """``count`` images of each prompt, as ``layout`` wants them. Image number ``c * P + p`` is the c-th of prompt p, as evaluate draws it.

    Raises :class:`InputError` for prompts of another kind than the layout's, and for a number of images that its script does not take.
    """
    if layout != "flat" and prompts.kind != layout:
        raise InputError(f"--layout {layout} wants prompts of kind {layout}, and evaluation.prompts is of kind {prompts.kind}")
    if layout in ("hpsv2", "dpg") and count != USUAL_COUNT[layout]:
        raise InputError(f"--count {count}: the script for {layout} reads {USUAL_COUNT[layout]} images of each prompt")
    numbers = [[copy * len(prompts.prompts) + row for copy in range(count)] for row in range(len(prompts.prompts))]
    rows = list(zip(prompts.prompts, numbers, strict=True))
    if layout == "compbench":
        return _compbench(rows)
    texts: dict[PurePosixPath, str] = {}
    if layout == "geneval":
        texts = {PurePosixPath(prompt.key) / "metadata.jsonl": json.dumps(prompt.record) for prompt in prompts.prompts}
    if layout == "flat":
        lines = [json.dumps({"file_name": file.path.name, "text": prompt.text}) for prompt, images in rows for file in _flat(images)]
        texts = {PurePosixPath("metadata.jsonl"): "".join(f"{line}\n" for line in lines)}
    return Layout(tuple(file for prompt, images in rows for file in _files(layout, prompt, images)), texts)


def _files(layout: str, prompt: Prompt, images: list[int]) -> Iterator[ImageFile]:
    if layout == "hpsv2":
        yield ImageFile(PurePosixPath(f"{prompt.key}.jpg"), tuple(images))
    elif layout == "geneval":
        for number, image in enumerate(images):
            yield ImageFile(PurePosixPath(prompt.key) / "samples" / f"{number:05d}.png", (image,))
    elif layout == "dpg":
        if "." in prompt.key or "/" in prompt.key:  # the script takes a name up to its first point
            raise InputError(f"{prompt.file} line {prompt.line}: the item {prompt.key!r} cannot be the name of a file; rename it")
        yield ImageFile(PurePosixPath(f"{prompt.key}.png"), tuple(images))
    else:
        yield from _flat(images)


def _flat(images: list[int]) -> Iterator[ImageFile]:
    for image in images:
        yield ImageFile(PurePosixPath(f"{image:05d}.png"), (image,))


def _compbench(rows: list[tuple[Prompt, list[int]]]) -> Layout:
    """The scripts read the prompt out of the name up to its first underscore: one that a name cannot hold is changed, and said."""
    files, notes, counts = list[ImageFile](), list[str](), dict[str, int]()
    for prompt, images in rows:
        name = _as_name(prompt.text)
        if name != prompt.text:
            notes.append(f"{prompt.file.name} line {prompt.line}: the scripts will read {name!r}, for a file's name cannot hold the prompt")
        category = prompt.groups["category"]
        for image in images:
            number = counts.get(category, 0)
            counts[category] = number + 1
            files.append(ImageFile(PurePosixPath(category) / "samples" / f"{name}_{number:06d}.png", (image,)))
    return Layout(tuple(files), {}, tuple(notes))


def _as_name(text: str) -> str:
    name = "".join(" " if letter in "/_\x00" else letter for letter in text)
    num_bytes = _LONGEST_NAME - len("_000000.png")
    return name.encode()[:num_bytes].decode(errors="ignore")
