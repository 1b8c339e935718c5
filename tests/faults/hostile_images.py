"""Images of every decoder: odd ones that are whole, and whole ones that were harmed, most of them behind their header."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.sharding.test_colour import LINEAR, LINEAR_GREY, P3

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_SIZES: Final = ((1, 1), (1, 9), (9, 1), (2, 3), (16, 16), (33, 17), (40, 30), (64, 8))
_MODES: Final[Mapping[str, tuple[str, ...]]] = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}
_HEADER_BYTES: Final[Mapping[str, int]] = {"JPEG": 200, "PNG": 41, "WEBP": 40, "GIF": 30, "BMP": 54}
"""Harm behind these many bytes leaves a file that its decoder takes for one of its own."""


def image_of(image_format: str, rng: random.Random) -> bytes:
    """A file of ``image_format``: half of them whole, however odd."""
    data = rng.choice(_RARE[image_format])(rng) if rng.random() < 0.25 and _RARE[image_format] else _common(image_format, rng)
    return data if rng.random() < 0.5 else _harmed(data, _HEADER_BYTES[image_format], rng)


def _common(image_format: str, rng: random.Random) -> bytes:
    mode = rng.choice(_MODES[image_format])
    image, options = _picture(rng, mode), dict[str, Any]()
    if image_format != "GIF" and rng.random() < 0.4:
        options["icc_profile"] = _profile(rng)
    if image_format in ("JPEG", "PNG", "WEBP") and rng.random() < 0.5:
        options["exif"] = _exif(rng)
    if image_format == "JPEG":
        options |= {"quality": rng.randrange(1, 101), "progressive": rng.random() < 0.4, "subsampling": rng.randrange(3)}
    if image_format == "WEBP":
        options |= {"lossless": rng.random() < 0.3, "quality": rng.randrange(101), "method": 0}
    if mode in ("L", "P", "RGB") and image_format in ("PNG", "GIF") and rng.random() < 0.4:
        options["transparency"] = tuple(rng.randbytes(3)) if mode == "RGB" else rng.randrange(256)
    if image_format == "GIF" and mode == "RGB":
        options.pop("transparency", None)
    return _file(image, image_format, **options)


def _animated(image_format: str) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        frames = [_picture(rng, "RGB", (12, 9)) for _ in range(rng.randrange(2, 4))]
        return _file(frames[0], image_format, save_all=True, append_images=frames[1:])

    return make


def _with_film(rng: random.Random) -> bytes:
    """A motion photo: a film behind the picture, in which markers of scans occur as in any random bytes."""
    return _common("JPEG", rng) + b"\0\0\0\x18ftypmp42" + rng.randbytes(500) + b"\xff\xda" * rng.randrange(150)


def _of_many_scans(rng: random.Random) -> bytes:
    data = _file(_picture(rng, "RGB", (16, 16)), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + data[scan:-2] * rng.randrange(1, 200) + data[-2:]


def _sixteen_bits(rng: random.Random) -> bytes:
    """PNG of 16 bits a channel and perhaps a transparent colour, which Pillow reads and does not write."""
    width, height = rng.choice(_SIZES)
    colours, channels = rng.choice(((0, 1), (2, 3), (4, 2), (6, 4)))
    rows = b"".join(b"\0" + rng.randbytes(2 * channels * width) for _ in range(height))
    key = _chunk(b"tRNS", rows[1 : 1 + 2 * channels]) if colours in (0, 2) and rng.random() < 0.7 else b""
    profile = _chunk(b"iCCP", b"x\0\0" + zlib.compress(_profile(rng))) if rng.random() < 0.3 else b""
    return _png(struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0), profile + key, rows)


def _few_bits(rng: random.Random) -> bytes:
    width, height = rng.choice(_SIZES)
    bits, colours = rng.choice((1, 2, 4)), rng.choice((0, 3))
    rows = b"".join(b"\0" + rng.randbytes((width * bits + 7) // 8) for _ in range(height))
    palette = _chunk(b"PLTE", rng.randbytes(3 * rng.randrange(1, 1 + (1 << bits)))) if colours == 3 else b""
    key = _chunk(b"tRNS", bytes((0, rng.randrange(1 << bits))) if colours == 0 else rng.randbytes(rng.randrange(1, 5)))
    return _png(struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0), palette + key, rows)


def _with_text(rng: random.Random) -> bytes:
    facts = PngImagePlugin.PngInfo()
    for name in rng.sample(("transparency", "icc_profile", "exif", "gamma", "dpi", "Raw profile type exif"), 2):
        facts.add_text(name, rng.choice(("1", "not a number", "\x7f" * 2000)), zip=rng.random() < 0.5)
    return _file(_picture(rng, rng.choice(_MODES["PNG"])), "PNG", pnginfo=facts)


def _bmp_with_alpha(rng: random.Random) -> bytes:
    """A 32-bit BMP whose header has an alpha mask, and whose alpha was perhaps never written."""
    width, height = rng.choice(_SIZES)
    never = rng.random() < 0.5
    pixels = b"".join(rng.randbytes(3) + (b"\0" if never else rng.randbytes(1)) for _ in range(width * height))
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    upright = rng.choice((1, -1)) * height
    header = struct.pack("<IiiHHIIiiII", 108, width, upright, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def _bmp_by_runs(rng: random.Random) -> bytes:
    """RLE8, with runs as they come."""
    width, height = 12, 9
    runs = (
        b"".join(bytes((rng.randrange(1, 13), rng.randrange(4))) + (b"\0\0" if rng.random() < 0.7 else b"") for _ in range(height))
        + b"\0\1"
    )
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 4, 0) + rng.randbytes(16)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(runs), 0, 0, 14 + len(header)) + header + runs


_RARE: Final[Mapping[str, tuple[Callable[[random.Random], bytes], ...]]] = {
    "JPEG": (_with_film, _of_many_scans, _animated("MPO")),
    "PNG": (_sixteen_bits, _few_bits, _with_text, _animated("PNG")),
    "WEBP": (_animated("WEBP"),),
    "GIF": (_animated("GIF"),),
    "BMP": (_bmp_with_alpha, _bmp_by_runs),
}


def _harmed(data: bytes, after: int, rng: random.Random) -> bytes:
    """``data`` harmed once, nine times of ten behind its first ``after`` bytes."""
    first = min(after, len(data) - 1) if rng.random() < 0.9 else 0
    place, length = rng.randrange(first, len(data)), rng.randrange(1, 40)
    match rng.randrange(6):
        case 0:
            harmed = bytearray(data)
            for _ in range(rng.randrange(1, 9)):
                harmed[rng.randrange(first, len(data))] = rng.randrange(256)
            return bytes(harmed)
        case 1:
            return data[: place + 1]
        case 2:
            return data[:place] + data[place + length :]
        case 3:
            return data[:place] + rng.randbytes(length) + data[place:]
        case 4:
            return data[:place] + bytes(length) + data[place + length :]
        case _:
            return data + rng.choice((b"PK\x03\x04", b"<html>", b"\0", b"\xff\xd9", data[: len(data) // 2])) * rng.randrange(1, 9)


def _picture(rng: random.Random, mode: str, size: tuple[int, int] | None = None) -> Image.Image:
    width, height = size or rng.choice(_SIZES)
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    if mode == "I;16":
        return Image.fromarray(numbers.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode in ("1", "P"):
        return Image.fromarray(numbers.integers(0, 256, (height, width), dtype=np.uint8)).convert(mode)
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), numbers.integers(0, 256, (height, width, channels), dtype=np.uint8).tobytes())


def _profile(rng: random.Random) -> bytes:
    whole = rng.choice((LINEAR, P3, LINEAR_GREY, _srgb()))
    match rng.randrange(4):
        case 0:
            return whole[: rng.randrange(1, len(whole))]
        case 1:
            harmed = bytearray(whole)
            harmed[rng.randrange(len(whole))] = rng.randrange(256)
            return bytes(harmed)
        case _:
            return whole


@lru_cache
def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(0, 11)
    block = exif.tobytes()
    return block if rng.random() < 0.7 else block[: rng.randrange(6, len(block))] + rng.randbytes(rng.randrange(20))


def _file(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _png(header: bytes, before: bytes, rows: bytes) -> bytes:
    body = _chunk(b"IHDR", header) + before + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
