from pathlib import Path

import pytest
import torch
from PIL import Image

from rglcd.evaluation.contact_sheet import contact_sheet, first_rows, sheet_image
from rglcd.evaluation.measurement import Sampler
from rglcd.evaluation.pictures import grid_png, most_png_rows


def test_grid_png_has_a_row_per_prompt_and_enlarges_without_blur():
    red = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    red[1, 0] = 255
    sheets = {Sampler("teacher", 50): contact_sheet(red), Sampler("rg", 1): contact_sheet(red)}
    picture = grid_png(sheets, ["black", "red with a very long caption " * 20], side=16)
    colours = {colour for _, colour in Image.Image.getcolors(picture.crop((6, 60, 102, 156)), 10_000)}
    assert colours == {(0, 0, 0)}
    assert picture.getpixel((50, picture.height - 30)) == (255, 0, 0)


@pytest.mark.parametrize(("columns", "side", "rows"), [(9, 1024, 18), (9, 768, 32), (300, 2048, 1)])
def test_the_png_has_no_more_rows_than_pillow_opens(columns: int, side: int, rows: int) -> None:
    assert most_png_rows(columns, side=side) == rows
    width, height = columns * (side + 6) + 6, 40 + (rows + 1) * (side + 26) + 6
    assert Image.MAX_IMAGE_PIXELS is not None
    assert width * height > 2 * Image.MAX_IMAGE_PIXELS, "a row more is too many"
    assert most_png_rows(2, side=16) > 400


def test_of_a_sheet_only_the_rows_that_are_shown_are_kept_however_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    images = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 16, 16) * 12
    contact_sheet(images).save(tmp_path / "images.png")
    sheet = first_rows(tmp_path / "images.png", 9, side=16)
    assert sheet.size == (8 * 16, 2 * 16)
    assert [sheet_image(sheet, number, side=16).getpixel((8, 8))[0] for number in range(9)] == [12 * number for number in range(9)]
    assert first_rows(tmp_path / "images.png", 500, side=16).size == (8 * 16, 3 * 16)
