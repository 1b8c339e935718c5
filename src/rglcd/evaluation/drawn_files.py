"""Single drawings as PNG files: what they are called, what their metadata says, and several beside one another in one sheet."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from rglcd.evaluation.contact_sheet import contact_sheet
from rglcd.evaluation.drawing import Asked
from rglcd.evaluation.measurement import Sampler
from rglcd.evaluation.pictures import grid_png
from rglcd.store.staging import staging_file

_LONGEST_SLUG: Final = 48


def file_name(asked: Asked, who: str) -> str:
    """``a-red-circle-rg-2-seed0-3.png``: the prompt, who drew it in how many steps, and of which noise.

    Where letters and digits do not say the whole prompt, a few digits of its digest tell it from others that look alike.
    """
    return f"{slug(asked.prompt)}-{slug(who)}-{asked.num_steps}-seed{asked.seed}-{asked.number}.png"


def slug(text: str) -> str:
    """``text`` as part of a file name: lower case, letters a to z, digits and dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_SLUG].strip("-")
    if plain and plain in (text, text.replace(" ", "-")):
        return plain
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}".lstrip("-")


def save_picture(picture: Tensor, path: Path, facts: Mapping[str, str]) -> None:
    """Write ``picture``, uint8 (1, 3, H, W), with ``facts`` as the PNG's own text, in UTF-8 (iTXt)."""
    info = PngImagePlugin.PngInfo()
    for name, value in facts.items():
        info.add_itxt(name, value)
    _save(as_image(picture), path, info)


def as_image(picture: Tensor) -> Image.Image:
    """uint8 (1, 3, H, W) as Pillow has it."""
    return Image.fromarray(picture[0].permute(1, 2, 0).contiguous().numpy())


def save_sheet(drawn: Mapping[Sampler, Sequence[Tensor]], titles: Sequence[str], path: Path) -> None:
    """Write one picture with a row for each of ``titles`` and a column for each sampler, of its ``drawn`` uint8 (1, 3, H, W)."""
    sheets = {sampler: contact_sheet(torch.cat(list(pictures))) for sampler, pictures in drawn.items()}
    side = next(iter(drawn.values()))[0].shape[-1]
    _save(grid_png(sheets, titles, side=side), path, None)


def _save(image: Image.Image, path: Path, info: PngImagePlugin.PngInfo | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with staging_file(path) as staging, staging.open("wb") as stream:
        image.save(stream, format="PNG", pnginfo=info)
