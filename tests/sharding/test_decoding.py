import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rglcd.sharding.accounting import Reason, RowRejectedError
from rglcd.sharding.decoding import (
    EXTENSIONS,
    Fit,
    Fitting,
    decode,
    encode,
    looks_like_image,
    open_picture,
    square,
    to_array,
)


def picture(width: int, height: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def file_of(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def png_header_claiming(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    start_of_pixels = struct.pack(">I", 1 << 20) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + start_of_pixels


def reason_of(data: bytes) -> Reason:
    with pytest.raises(RowRejectedError) as caught:
        decode(data)
    return caught.value.reason


@given(side=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_picture_of_the_wanted_size_passes_unchanged(side: int, seed: int) -> None:
    image = picture(side, side, seed=seed)
    assert np.array_equal(np.asarray(decode(encode(square(image, side), "png"))), np.asarray(image))


@given(width=st.integers(1, 90), height=st.integers(1, 90), resolution=st.integers(1, 48))
def test_every_picture_becomes_square(width: int, height: int, resolution: int) -> None:
    assert square(picture(width, height), resolution).size == (resolution, resolution)


def test_the_centre_of_the_picture_is_kept() -> None:
    image = Image.new("RGB", (90, 30), "red")
    image.paste("green", (30, 0, 60, 30))
    assert set(square(image, 30).get_flattened_data()) == {(0, 128, 0)}


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    shrunk = np.asarray(square(Image.fromarray(stripes), 8)).astype(int)
    assert abs(shrunk[2:-2, 2:-2] - 127.5).max() < 4


def test_a_strip_of_many_million_pixels_costs_no_more_than_its_square() -> None:
    assert square(Image.new("RGB", (1_000_000, 2)), 512).size == (512, 512)


@pytest.mark.parametrize("image_format", EXTENSIONS)
def test_encoding_is_deterministic_and_carries_no_metadata(image_format: str) -> None:
    image = picture(32, 32)
    image.info["comment"] = b"from somewhere"
    first = encode(image, image_format)
    assert first == encode(decode(encode(image, "png")), image_format)
    reread = Image.open(io.BytesIO(first))
    assert (reread.format or "").lower() == image_format
    assert not set(reread.info) & {"comment", "exif", "icc_profile"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = picture(24, 16)
    stored_from = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Transpose that undoes it
    stored = upright.transpose(Image.Transpose(stored_from[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(file_of(stored, exif=exif))), np.asarray(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode(file_of(picture(16, 16, mode="RGBA").convert(mode)))
    assert (image.mode, image.size) == ("RGB", (16, 16))


def test_cmyk_becomes_rgb() -> None:
    assert decode(file_of(picture(16, 16, mode="CMYK"), "JPEG")).mode == "RGB"


def test_transparency_is_laid_on_white() -> None:
    assert decode(file_of(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(file_of(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(np.asarray(decode(file_of(Image.fromarray(grey))))[..., 0], grey >> 8)


def test_an_animation_becomes_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_of_exactly_the_pixel_limit_is_accepted() -> None:
    assert reason_of(png_header_claiming(8000, 4000)) == Reason.UNDECODABLE  # there is nothing behind it


@pytest.mark.parametrize(("width", "height"), [(8001, 4000), (12_000, 12_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    assert reason_of(png_header_claiming(width, height)) == Reason.TOO_LARGE


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_truncated_file_is_refused_unless_every_pixel_is_in_it(image_format: str) -> None:
    """Only the bytes that close a file may be missing: no grey is ever filled in."""
    data = file_of(picture(24, 24), image_format)
    whole = np.asarray(decode(data))
    num_refused = 0
    for length in range(len(data)):
        try:
            image = decode(data[:length])
        except RowRejectedError:
            num_refused += 1
        else:
            assert np.array_equal(np.asarray(image), whole), length
    assert num_refused >= len(data) - 20


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.UNKNOWN_FORMAT),
        (b"\0" * 100, Reason.UNKNOWN_FORMAT),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.UNKNOWN_FORMAT),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.UNKNOWN_FORMAT),
        (b"<!doctype html><title>404</title>", Reason.UNKNOWN_FORMAT),
        (file_of(picture(8, 8), "TIFF"), Reason.UNKNOWN_FORMAT),
        (file_of(picture(8, 8), "PPM"), Reason.UNKNOWN_FORMAT),
        (b"GIF89a", Reason.UNDECODABLE),
        (b"\xff\xd8\xff\xe0", Reason.UNDECODABLE),
    ],
)
def test_data_of_an_unknown_format_is_refused(data: bytes, reason: Reason) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats_are_recognised_by_their_first_bytes(image_format: str) -> None:
    assert looks_like_image(file_of(picture(8, 8), image_format)[:16])


def photograph(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Noise with the spectrum of photographs (power falls with the square of frequency), its channels akin."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    shape = (4, *frequency.shape)
    spectra = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / frequency**1.35
    planes = [np.fft.irfft2(0.8 * spectra[3] + 0.2 * spectra[channel], s=(height, width)) for channel in range(3)]
    return Image.fromarray(np.clip([plane / plane.std() * 50 + 128 for plane in planes], 0, 255).astype(np.uint8).transpose(1, 2, 0))


def fidelity_db(found: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((found.astype(float) - expected) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


class TestFastDecoding:
    @pytest.mark.parametrize("size", [(640, 480), (333, 500), (1024, 768), (1001, 403), (100, 80)])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
    def test_jpeg_decoding_equals_pillows_to_50_decibels(self, size: tuple[int, int], options: dict[str, object]) -> None:
        data = file_of(photograph(*size), "JPEG", quality=90, **options)
        short, (left, top) = min(size), ((side - min(size)) // 2 for side in size)
        box = (left, top, left + short, top + short)
        expected = Image.open(io.BytesIO(data)).resize((256, 256), Image.Resampling.BICUBIC, box=box)
        assert fidelity_db(open_picture(data, Fitting(resolution=256)).pixels, np.asarray(expected)) > 50

    def test_grey_jpeg_decoding_equals_pillows(self) -> None:
        data = file_of(photograph(300, 200).convert("L"), "JPEG")
        assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_applied_as_pillow_does(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = file_of(photograph(48, 32), "JPEG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))


class TestFitting:
    @pytest.mark.parametrize(
        ("fit", "size"),
        [(Fit.CENTER_CROP, (24, 24)), (Fit.BORDER, (24, 24)), (Fit.KEEP_RATIO, (48, 24)), (Fit.NO, (60, 30))],
    )
    def test_sizes(self, fit: Fit, size: tuple[int, int]) -> None:
        picture_ = open_picture(file_of(picture(60, 30)), Fitting(resolution=24, fit=fit))
        assert (picture_.pixels.shape[1::-1], picture_.original_size) == (size, (60, 30))

    def test_padding_is_white_and_on_both_sides(self) -> None:
        pixels = open_picture(file_of(Image.new("RGB", (40, 20), "red")), Fitting(resolution=16, fit=Fit.BORDER)).pixels
        assert (pixels[[0, 3, 12, 15]] == 255).all()
        assert (pixels[4:12] == (255, 0, 0)).all()

    @pytest.mark.parametrize(
        ("size", "reason"), [((60, 30), None), ((29, 60), Reason.TOO_SMALL), ((91, 30), Reason.TOO_LONG), ((30, 90), None)]
    )
    def test_small_and_long_pictures_are_filtered(self, size: tuple[int, int], reason: Reason | None) -> None:
        fitting = Fitting(resolution=8, min_side=30, max_aspect=3)
        if reason is None:
            open_picture(file_of(picture(*size)), fitting)
        else:
            with pytest.raises(RowRejectedError, match=reason.value):
                open_picture(file_of(picture(*size)), fitting)

    def test_size_filters_apply_before_a_pixel_is_decoded(self) -> None:
        with pytest.raises(RowRejectedError, match=Reason.TOO_LONG.value):
            open_picture(png_header_claiming(6000, 1000), Fitting(resolution=8, max_aspect=3))

    def test_a_strip_cannot_grow_without_bound(self) -> None:
        with pytest.raises(RowRejectedError, match=Reason.TOO_LARGE.value):
            open_picture(file_of(Image.new("L", (1_000_000, 1))), Fitting(resolution=512, fit=Fit.KEEP_RATIO))


@given(data=st.data(), image_format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
def test_damaged_bytes_decode_or_are_refused(data: st.DataObject, image_format: str) -> None:
    whole = bytearray(file_of(picture(12, 12), image_format))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(whole))
    except RowRejectedError:
        return
    assert image.mode == "RGB"


def test_arrays_are_channels_first() -> None:
    image = picture(5, 3)
    array = to_array(image)
    assert array.shape == (3, 3, 5)
    assert tuple(array[:, 2, 4]) == image.getpixel((4, 2))
