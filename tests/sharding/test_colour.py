"""Colours: profiles are followed in every mode of every format, and transparency is what the format says it is."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from rglcd.sharding.decoding import decode
from tests.sharding.test_decoding import file_of, picture
from tests.sharding.test_png import chunk, with_chunks

COLOUR = (200, 60, 60)
SRGB_COLOURANTS = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
P3_COLOURANTS = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))


def icc_profile(description: str, *, gamma: float, colourants: tuple[tuple[float, float, float], ...] = ()) -> bytes:
    """A profile of ICC's second version with one ``gamma``: of RGB with ``colourants`` (XYZ for D50), or of grey without."""
    white = (0.9642, 1.0, 0.8249)

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    name = description.encode() + b"\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(79), b"wtpt": xyz(white)}
    for letter, colourant in zip(b"rgb", colourants, strict=False):
        tags[bytes([letter]) + b"XYZ"], tags[bytes([letter]) + b"TRC"] = xyz(colourant), curve
    if not colourants:
        tags[b"kTRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    space = b"RGB " if colourants else b"GRAY"
    header = struct.pack(">4x4sI4s4s4s12x4s28x", b"\0\0\0\0", 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    header = header[:64] + struct.pack(">I3i", 0, *(round(value * 65536) for value in white)) + bytes(48)
    return struct.pack(">I", 128 + len(table) + len(body)) + header[4:] + table + body


LINEAR = icc_profile("GIMP built-in Linear sRGB", gamma=1, colourants=SRGB_COLOURANTS)
P3 = icc_profile("Display P3", gamma=2.2, colourants=P3_COLOURANTS)
LINEAR_GREY = icc_profile("Linear grey", gamma=1)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def converted(image: Image.Image, profile: bytes) -> np.ndarray:
    result = ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert result is not None
    return np.asarray(result)


def with_alpha(image: Image.Image) -> Image.Image:
    """``image`` with its left half transparent."""
    image = image.copy()
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, image.width // 2, image.height))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "PNG", {"transparency": 9}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("profile", [P3, LINEAR], ids=["P3", "linear"])
def test_a_profile_is_followed_with_alpha_and_palette_too(mode: str, image_format: str, options: dict[str, object], profile: bytes) -> None:
    opaque = Image.new("RGB", (16, 16), COLOUR)
    image = with_alpha(opaque) if mode == "RGBA" else opaque.quantize(2) if mode == "P" else opaque
    found = np.asarray(decode(file_of(image, image_format, icc_profile=profile, **options)))
    assert np.array_equal(found[:, 8:], converted(opaque, profile)[:, 8:])
    assert abs(found[0, 8].astype(int) - COLOUR).max() > 15
    if mode == "RGBA":
        assert (found[:, :8] == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_a_grey_profile_is_followed_with_alpha_and_sixteen_bits_too(mode: str) -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    if mode == "1":
        grey = grey.point(lambda level: 255 * (level > 99))
    stored = {
        "L": lambda: grey,
        "LA": lambda: with_alpha(grey),
        "1": lambda: grey.convert("1"),
        "I;16": lambda: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    }[mode]()
    found = np.asarray(decode(file_of(stored, icc_profile=LINEAR_GREY)))
    assert np.array_equal(found[:, 8:], converted(grey, LINEAR_GREY)[:, 8:])


def test_a_linear_profile_is_not_srgb_though_its_name_says_so() -> None:
    for image_format in ("PNG", "JPEG"):
        found = decode(file_of(Image.new("RGB", (16, 16), COLOUR), image_format, icc_profile=LINEAR)).getpixel((8, 8))
        assert abs(np.array(found) - (229, 133, 133)).max() <= 1, image_format


def test_another_colour_profile_is_converted_to_srgb_whatever_its_name() -> None:
    """A profile whose red and green change places: what the file calls red is to be seen as green."""
    swapped = bytearray(SRGB)
    red, green = (swapped.index(tag, 128) for tag in (b"rXYZ", b"gXYZ"))
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    for image_format in ("PNG", "JPEG"):
        red_square = Image.new("RGB", (16, 16), (255, 0, 0))
        red_, green_, blue_ = decode(file_of(red_square, image_format, icc_profile=bytes(swapped))).getpixel((8, 8))
        assert green_ > 240, image_format
        assert max(red_, blue_) < 40, image_format


@pytest.mark.parametrize("profile", [b"broken", b"\0" * 200, LINEAR_GREY, SRGB, SRGB.replace(b"\0s\0R\0G\0B", b"\0m\0i\0n\0e")])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_profile_that_is_broken_or_for_other_colours_or_srgb_changes_nothing(profile: bytes, mode: str) -> None:
    image = picture(16, 16, mode=mode)
    assert np.array_equal(np.asarray(decode(file_of(image, icc_profile=profile))), np.asarray(decode(file_of(image))))


def bmp_with_alpha_mask(alpha: int) -> bytes:
    """Two by two pixels of COLOUR under a V4 header that names an alpha mask."""
    pixels = bytes((*COLOUR[::-1], alpha)) * 4
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 2, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def test_a_bmp_whose_alpha_was_never_written_is_opaque() -> None:
    assert decode(bmp_with_alpha_mask(0)).getpixel((0, 0)) == COLOUR
    assert decode(bmp_with_alpha_mask(255)).getpixel((0, 0)) == COLOUR
    half = decode(bmp_with_alpha_mask(128)).getpixel((0, 0))
    assert abs(np.array(half) - (227, 157, 157)).max() <= 1


@pytest.mark.parametrize(
    ("num_bits", "line", "key", "expected"), [(1, 0b01000000, 0, [255, 255]), (2, 0b01100000, 1, [255, 170]), (4, 0x59, 5, [255, 153])]
)
def test_the_transparent_grey_of_a_png_of_few_bits_is_white(num_bits: int, line: int, key: int, expected: list[int]) -> None:
    header = struct.pack(">IIBBBBB", 2, 1, num_bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(bytes((0, line)))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*content) for content in chunks)
    assert np.asarray(decode(data))[0, :, 0].tolist() == expected


def png_of_sixteen_bits(samples: np.ndarray, key: tuple[int, ...]) -> bytes:
    """``samples`` (H, W, C) as a PNG in which the colour ``key`` is transparent."""
    height, width, num_channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if num_channels == 3 else 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    signed = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return signed + chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("key", [(0x1234,), (0x1234, 0x8001, 0x4002)], ids=["grey", "RGB"])
def test_the_transparent_colour_of_a_sixteen_bit_png_is_white_to_its_last_bit(key: tuple[int, ...]) -> None:
    samples = np.array([[key, tuple(value ^ 1 for value in key), (*key[:-1], key[-1] ^ 1)]] * 2)
    found = np.asarray(decode(png_of_sixteen_bits(samples, key)))
    upper = np.broadcast_to(samples >> 8, (2, 3, 3))
    assert (found[:, 0] == 255).all()
    assert np.array_equal(found[:, 1:], upper[:, 1:])


def test_the_transparent_colour_of_a_turned_sixteen_bit_png_is_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for key in [(0x1234,), (0x1234, 0x8001, 0x4002)]:
        samples = np.array([[key] + [(0,) * len(key)] * 2])
        turned = with_chunks(png_of_sixteen_bits(samples, key), chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
        assert np.asarray(decode(turned))[:, 0, 0].tolist() == [255, 0, 0]
