"""JPEG: fast decoding, and whether a file is whole by libjpeg's own words, which Pillow does not pass on.

libjpeg fills in what it cannot read with grey or with garbage, and says so once: only its first complaint is to be had. One to three stray
bytes before a marker are no damage: whole files of careless encoders have them.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from rglcd.sharding.accounting import Reason, RowRejectedError

MAX_SCANS: Final = 100
"""Scans of a progressive JPEG: ten are usual; thousands in a small file keep a decoder busy for minutes."""

_START, _SCAN, _END = b"\xff\xd8", 0xDA, 0xD9
_APPLICATION_AND_COMMENT: Final = (*range(0xE0, 0xF0), 0xFE)

# Neither a stuffed zero nor a filling FF; and nothing that libjpeg passes over without a length (RSTn, TEM, reserved codes).
_MARKER: Final = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")

_DAMAGE: Final = re.compile(
    r"Inconsistent progression sequence"  # a scan is missing
    r"|Corrupt JPEG data: (?!bad ICC marker|[1-3] extraneous bytes before marker)"
)
_STRAY: Final = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker")


def refuse_too_many_scans(data: bytes) -> None:
    """Raise :class:`RowRejectedError` if the image, whatever else is in the file, has more than :data:`MAX_SCANS` scans."""
    if data.count(bytes((0xFF, _SCAN))) > MAX_SCANS and sum(marker == _SCAN for marker, _, _ in _segments(data)) > MAX_SCANS:
        raise RowRejectedError(Reason.UNDECODABLE)


def refuse_damaged(data: bytes) -> None:
    """Raise :class:`RowRejectedError` if libjpeg tells of damage. Costs less than decoding: an eighth of each side is made."""
    complaint = _complaint(data)
    if complaint is not None:
        _refuse_if_damage(data, complaint)


def decoded(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Pixels (H, W, 3) of a grey or RGB JPEG, those of Pillow a quarter faster; None for one with a flaw, of which Pillow is the judge.

    Raises :class:`RowRejectedError` if libjpeg tells of damage.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if (width, height) != size:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        _refuse_if_damage(data, str(error))
        return None
    return pixels


def _refuse_if_damage(data: bytes, complaint: str) -> None:
    if _STRAY.match(complaint):
        # However many stray bytes lie between a header's segments, no pixel is lost.
        complaint = _complaint(_without_stray_bytes_in_header(data)) or ""
    if not _DAMAGE.match(complaint):
        # A flaw of the header, such as an unknown JFIF version, keeps libjpeg silent about what comes after it.
        complaint = _complaint(_bare(data)) or ""
    if _DAMAGE.match(complaint):
        raise RowRejectedError(Reason.UNDECODABLE) from ValueError(complaint)  # which is how simplejpeg tells of it


def _complaint(data: bytes) -> str | None:
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        return str(error)
    return None


def _without_stray_bytes_in_header(data: bytes) -> bytes:
    """``data`` without what lies between the segments before its first scan; from there on as it is."""
    header = [_START]
    for marker, start, end in _segments(data):
        if marker == _SCAN:
            return b"".join((*header, data[start:]))
        header.append(data[start:end])
    return data


def _bare(data: bytes) -> bytes:
    """The JPEG ``data`` without application segments, comments and stray bytes between segments."""
    segments = [*_segments(data), (_END, len(data), len(data))]
    parts = [
        data[start : following if marker == _SCAN else end]  # coded data follow a scan's header
        for (marker, start, end), (_, following, _) in pairwise(segments)
        if marker not in _APPLICATION_AND_COMMENT
    ]
    return _START + b"".join(parts)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the end of the image, as libjpeg comes upon them."""
    place = len(_START)
    while (found := _MARKER.search(data, place)) is not None:
        marker, start = found[1][0], found.start()
        length = 0 if marker == _END else int.from_bytes(data[start + 2 : start + 4], "big")
        place = start + 2 + length
        yield marker, start, place
        if length < 2:  # the end, or a length that libjpeg refuses
            return
