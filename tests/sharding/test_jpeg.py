"""JPEGs as cameras, proxies and failing disks leave them: a damaged one is refused, a whole one is not."""

import io
import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from rglcd.sharding.accounting import Reason
from rglcd.sharding.decoding import decode
from rglcd.sharding.jpeg import MAX_SCANS
from tests.sharding.test_decoding import file_of, photograph, picture, reason_of

SCAN, END = b"\xff\xda", b"\xff\xd9"
PROFILE = b"unusable"  # has every JPEG that carries it decoded by Pillow

KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "profile": {"icc_profile": PROFILE},
}


def jpeg_of(kind: str) -> bytes:
    options = KINDS[kind].copy()
    return file_of(photograph(160, 120).convert(str(options.pop("mode", "RGB"))), "JPEG", quality=90, **options)


def cut(data: bytes) -> bytes:
    """Its first half with an end marker, as a proxy closes what it could not fetch."""
    return data[: len(data) // 2] + END


def scribbled(data: bytes) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, 400, dtype=np.uint8).tobytes()
    return data[: len(data) // 2] + noise + data[len(data) // 2 + 400 :]


def zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(400) + data[len(data) // 2 + 400 :]


def with_application_data(data: bytes, content: bytes) -> bytes:
    return data[:2] + b"\xff\xe5" + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


@pytest.mark.parametrize("damage", [cut, scribbled, zeroed])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_jpeg_is_refused_and_not_filled_with_grey(kind: str, damage: Callable[[bytes], bytes]) -> None:
    assert decode(jpeg_of(kind)).size == (160, 120)
    assert reason_of(damage(jpeg_of(kind))) == Reason.UNDECODABLE


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_stray_bytes_before_the_end_marker_are_no_damage(kind: str, num_bytes: int) -> None:
    data = jpeg_of(kind)
    stray = decode(data[:-2] + b"abc"[:num_bytes] + END)
    assert np.array_equal(np.asarray(stray), np.asarray(decode(data)))


def test_stray_bytes_between_scans_are_no_damage_and_hide_none() -> None:
    data = jpeg_of("progressive")
    third = [scan.start() for scan in re.finditer(SCAN, data)][2]
    stray = data[:third] + b"ab" + data[third:]
    assert np.array_equal(np.asarray(decode(stray)), np.asarray(decode(data)))
    assert reason_of(stray[:-300] + END) == Reason.UNDECODABLE


@pytest.mark.parametrize("kind", KINDS)
def test_stray_bytes_in_the_header_are_no_damage_and_hide_none(kind: str) -> None:
    """As some scanners and an old Photoshop write them; Pillow's own tests have three such files."""
    data = jpeg_of(kind)
    table = data.index(b"\xff\xdb")
    for stray in (b"\xff\x00\xff\x00", b"x" * 16, bytes(300)):
        odd = data[:table] + stray + data[table:]
        assert np.array_equal(np.asarray(decode(odd)), np.asarray(decode(data)))
        assert [reason_of(harm(odd)) for harm in (cut, zeroed)] == [Reason.UNDECODABLE] * 2


def test_a_flaw_of_the_header_is_no_damage_and_hides_none() -> None:
    data = jpeg_of("baseline")
    odd = data.replace(b"JFIF\0\1", b"JFIF\0\7")
    assert np.array_equal(np.asarray(decode(odd)), np.asarray(decode(data)))
    assert reason_of(cut(odd)) == Reason.UNDECODABLE


def test_a_progressive_jpeg_that_lacks_a_scan_is_refused() -> None:
    data = jpeg_of("progressive")
    starts = [scan.start() for scan in re.finditer(SCAN, data)]
    for lost, following in pairwise(starts):
        assert reason_of(data[:lost] + data[following:]) == Reason.UNDECODABLE


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_is_decoded_as_pillow_does(kind: str) -> None:
    data = jpeg_of(kind)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = file_of(picture(32, 32), "JPEG", progressive=True)
    assert decode(data).size == (32, 32)
    scan = data.rindex(SCAN)
    assert reason_of(data[:scan] + data[scan:-2] * (MAX_SCANS + 1) + END) == Reason.UNDECODABLE


def test_scans_cannot_hide_behind_a_marker_that_libjpeg_passes_over() -> None:
    data = file_of(picture(32, 32), "JPEG", progressive=True)
    scan = data.rindex(SCAN)
    for passed_over in (b"\xff\xd0", b"\xff\x01", b"\xff\x02"):
        hidden = data[:scan] + passed_over + b"\xff\xfe" + data[scan:-2] * (MAX_SCANS + 1) + END
        assert reason_of(hidden) == Reason.UNDECODABLE


def test_a_jpeg_with_a_film_behind_it_is_decoded() -> None:
    """Motion photos: the film's bytes look like scans now and then."""
    data = jpeg_of("baseline")
    assert np.array_equal(np.asarray(decode(data + b"ftypmp42" + SCAN * 500)), np.asarray(decode(data)))


def test_a_jpeg_whose_metadata_look_like_scans_is_decoded() -> None:
    data = jpeg_of("baseline")
    assert np.array_equal(np.asarray(decode(with_application_data(data, SCAN * 500))), np.asarray(decode(data)))
