"""PNGs as programs write them."""

import struct
import zlib

import numpy as np
import pytest

from rglcd.sharding.accounting import Reason
from rglcd.sharding.decoding import decode
from tests.sharding.test_decoding import file_of, picture, reason_of


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """``png`` with ``chunks`` after its header."""
    return png[:33] + b"".join(chunks) + png[33:]


TEXT_CHUNKS = {
    "zTXt": lambda text: chunk(b"zTXt", b"history\0\0" + zlib.compress(text)),
    "iTXt": lambda text: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)),
    "tEXt": lambda text: chunk(b"tEXt", b"history\0" + text),
}


@pytest.mark.parametrize("kind", TEXT_CHUNKS)
def test_a_png_with_megabytes_of_text_is_decoded(kind: str) -> None:
    image = picture(9, 7)
    data = with_chunks(file_of(image), TEXT_CHUNKS[kind](b"edited " * 450_000))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(image))


def test_a_png_whose_text_unpacks_to_more_than_memory_should_hold_is_refused() -> None:
    zeros = bytes(16 << 20)
    assert reason_of(with_chunks(file_of(picture(9, 7)), TEXT_CHUNKS["zTXt"](zeros + b"0"))) == Reason.UNDECODABLE
    five_texts = [TEXT_CHUNKS["zTXt"](zeros)] * 5
    assert reason_of(with_chunks(file_of(picture(9, 7)), *five_texts)) == Reason.UNDECODABLE


@pytest.mark.parametrize("name", [b"transparency", b"icc_profile"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_text_that_is_called_like_a_property_is_a_text(mode: str, name: bytes) -> None:
    image = picture(9, 7).convert(mode)
    named = with_chunks(file_of(image), chunk(b"tEXt", name + b"\0a text"))
    assert np.array_equal(np.asarray(decode(named)), np.asarray(image.convert("RGB")))
