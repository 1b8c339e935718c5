"""Text that strangers wrote, made such that every file written later can hold it: captions, and names that are no UTF-8."""

import codecs
import json
from collections.abc import Mapping
from typing import Any, Final

from rglcd.sharding.accounting import Reason, RowRejectedError

MAX_CAPTION_BYTES: Final = 16 << 10  # CC12M keeps alt texts of 3 to 256 words (Changpinyo et al. 2021, section 2.1)
MAX_JSON_BYTES: Final = 1 << 20

CAPTION_EXTENSIONS: Final = ("txt", "text", "caption")
"""Of the files that hold an image's caption, the first that is there; then the key ``caption`` of its ``json``."""

_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARK: Final = "\ufeff"


def storable(text: str) -> str:
    """``text`` with backslash escapes for what UTF-8 cannot hold: half of a surrogate pair, or a byte of a name in another encoding."""
    return text.encode(errors="backslashreplace").decode()


def text_of(data: bytes) -> str:
    """The text of a caption file: UTF-16 if its byte order mark says so, else UTF-8.

    Raises :class:`RowRejectedError`: a guess at another encoding would train on wrong letters.
    """
    try:
        return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError:
        raise RowRejectedError(Reason.UNREADABLE_CAPTION) from None


def checked_caption(text: str) -> str:
    """``text`` without blanks and byte order marks around it. Raises :class:`RowRejectedError` if it is no caption."""
    caption = text.strip().strip(_MARK).strip()
    if not caption:
        raise RowRejectedError(Reason.EMPTY_CAPTION)
    try:
        num_bytes = len(caption.encode())
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise RowRejectedError(Reason.UNREADABLE_CAPTION) from None
    if num_bytes > MAX_CAPTION_BYTES:
        raise RowRejectedError(Reason.CAPTION_TOO_LONG)
    if "\0" in caption:  # UTF-16 without its mark, mostly
        raise RowRejectedError(Reason.UNREADABLE_CAPTION)
    return caption


def facts_in(data: bytes) -> Mapping[str, Any]:
    """The JSON object that ``data`` holds; nothing if it holds none."""
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
