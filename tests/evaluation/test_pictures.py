import torch
from PIL import Image

from rglcd.evaluation.contact_sheet import contact_sheet
from rglcd.evaluation.measurement import Sampler
from rglcd.evaluation.pictures import grid_png


def test_grid_png_has_a_row_per_prompt_and_enlarges_without_blur():
    red = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    red[1, 0] = 255
    sheets = {Sampler("teacher", 50): contact_sheet(red), Sampler("rg", 1): contact_sheet(red)}
    picture = grid_png(sheets, ["black", "red with a very long caption " * 20], side=16)
    colours = {colour for _, colour in Image.Image.getcolors(picture.crop((6, 60, 102, 156)), 10_000)}
    assert colours == {(0, 0, 0)}
    assert picture.getpixel((50, picture.height - 30)) == (255, 0, 0)
