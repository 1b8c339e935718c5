"""The contact sheet of a sampler: its first images in one picture, and single ones taken out of it again."""

from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

SHEET_COLUMNS = 8


def contact_sheet(images: Tensor) -> Image.Image:
    """uint8 ``images`` (N, 3, H, W), :data:`SHEET_COLUMNS` a row without gaps, in order, the last row filled with black."""
    num_images, channels, height, width = images.shape
    num_rows = -(-num_images // SHEET_COLUMNS)
    filled = torch.zeros(num_rows * SHEET_COLUMNS, channels, height, width, dtype=torch.uint8)
    filled[:num_images] = images
    grid = filled.view(num_rows, SHEET_COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(grid.reshape(num_rows * height, SHEET_COLUMNS * width, channels).numpy())


def open_sheet(path: Path) -> Image.Image:
    """The contact sheet in the file ``path``, which is read when its pixels are wanted.

    Not by ``Image.open``, which takes a file of more than 179 million pixels for an attack: some three hundred pictures of 768 pixels.
    """
    return PngImageFile(path)


def first_rows(path: Path, count: int, *, side: int) -> Image.Image:
    """Of the contact sheet in the file ``path``, of square images of ``side`` pixels, the rows that hold the first ``count`` images.

    A sheet of a thousand large pictures takes gigabytes; of all samplers' at once only what is shown is to lie in memory.
    """
    with open_sheet(path) as sheet:
        rows = Image.new(sheet.mode, (sheet.width, min(sheet.height, -(-count // SHEET_COLUMNS) * side)))
        rows.paste(sheet)  # crop would take so many pixels for an attack, too
    return rows


def sheet_image(sheet: Image.Image, index: int, *, side: int) -> Image.Image:
    """The ``index``-th image of a contact sheet of square images of ``side`` pixels."""
    row, column = divmod(index, SHEET_COLUMNS)
    return sheet.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
