"""What goes wrong with one picture is that row's reason; what goes wrong with the machine is not."""

import errno
import io
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageOps

from rglcd.sharding import decoding
from rglcd.sharding.accounting import Reason, RowRejectedError
from rglcd.sharding.decoding import Fit, Fitting, encode, fitted, open_picture
from tests.sharding.test_decoding import file_of, picture


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_picture_one_pixel_wide_is_turned_and_fitted(image_format: str, fit: Fit) -> None:
    for orientation, size in product(range(1, 9), [(1, 1), (2, 1), (7, 1), (1, 7)]):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = file_of(picture(*size), image_format, exif=exif)
        upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        found = open_picture(data, Fitting(resolution=8, fit=fit))
        assert np.array_equal(found.pixels, fitted(upright, 8, fit=fit)), (orientation, size)
        assert encode(found.pixels, "png")


def test_whatever_fitting_raises_is_the_pictures_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason_when_fitting_raises(monkeypatch, ValueError("no such stride")) == Reason.UNDECODABLE
    assert reason_when_fitting_raises(monkeypatch, ZeroDivisionError()) == Reason.UNDECODABLE
    assert reason_when_fitting_raises(monkeypatch, OSError("image file is truncated")) == Reason.UNDECODABLE


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["memory", "disk", "torch"],
)
def test_what_would_befall_every_picture_is_no_pictures_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)):
        reason_when_fitting_raises(monkeypatch, error)


@pytest.mark.parametrize(("image_format", "side"), [("webp", 16_384), ("jpeg", 65_501)])
def test_a_side_longer_than_the_format_can_say_is_a_reason(image_format: str, side: int) -> None:
    with pytest.raises(RowRejectedError, match=Reason.TOO_LARGE.value):
        encode(np.zeros((1, side, 3), dtype=np.uint8), image_format)
    assert encode(np.zeros((1, side - 1, 3), dtype=np.uint8), image_format)


def reason_when_fitting_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Reason:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(decoding, "fitted", fails)
    with pytest.raises(RowRejectedError) as caught:
        open_picture(file_of(picture(9, 9)), Fitting(resolution=8))
    return caught.value.reason
