"""Preprocessing equals the reference's transforms."""

import pytest
import torch
from torch import Tensor

from rglcd.rewards.preprocessing import Fit, Preprocessing, longest_side_padded, shortest_side_cropped
from tests.assets.rewards.published import pictures
from tests.rewards.published_models import answers, pixels_of_pictures

STD = 0.26130258  # of green; a level is 1 / 255 before it is divided by this


@pytest.mark.parametrize("kind", ["hpsv2", "clipscore", "imagereward"])
def test_preprocessing_equals_the_references_on_real_images(kind: str) -> None:
    theirs = answers(kind)["pixels"]
    side = theirs.shape[-1]
    preprocessing = Preprocessing.of(Fit.LONGEST_PADDED if kind == "hpsv2" else Fit.SHORTEST_CROPPED).like(theirs)
    ours = torch.cat([preprocessing(pixels, side) for pixels in pixels_of_pictures()])
    # hpsv2 resizes tensors; PIL rounds to whole levels twice, so 1.5 levels at most.
    rounding = 1e-5 if kind == "hpsv2" else 1.5 / 255 / STD
    for picture, mine, reference in zip(pictures(), ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-5 if picture.size == (side, side) else rounding)


@pytest.mark.parametrize("side", [24, 30])
@pytest.mark.parametrize("fit", list(Fit))
def test_preprocessing_for_half_precision_rounds_only_its_result(fit: Fit, side: int) -> None:
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    whole, half = (Preprocessing.of(fit).like(torch.zeros(1, dtype=dtype))(pixels, 24) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(half, whole.bfloat16())


@pytest.mark.parametrize(("height", "width"), [(30, 30), (24, 50), (51, 24), (12, 24), (24, 24), (7, 90)])
@pytest.mark.parametrize("fit", [shortest_side_cropped, longest_side_padded])
def test_preprocessing_makes_squares_of_images_of_any_shape(fit, height: int, width: int) -> None:
    pixels = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    square: Tensor = fit(pixels, 24)
    assert square.shape == (3, 3, 24, 24)
    torch.testing.assert_close(square, torch.cat([fit(pixels[row : row + 1], 24) for row in range(3)]))


def test_padding_is_black_and_centred() -> None:
    square = longest_side_padded(torch.ones(1, 3, 10, 40), 20)
    assert square[..., :7, :].abs().max() == 0
    assert square[..., 12:, :].abs().max() == 0
    torch.testing.assert_close(square[..., 7:12, :], torch.ones(1, 3, 5, 20))


def test_square_of_the_expected_size_is_not_resized() -> None:
    pixels = torch.rand(2, 3, 24, 24)
    for fit in (shortest_side_cropped, longest_side_padded):
        assert torch.equal(fit(pixels, 24), pixels)


def test_values_are_clamped_only_where_pil_clamps_them() -> None:
    edge = torch.zeros(1, 3, 40, 40)
    edge[..., 20:] = 1
    assert shortest_side_cropped(edge, 33).min() == 0
    assert longest_side_padded(edge, 33).min() < -0.01
