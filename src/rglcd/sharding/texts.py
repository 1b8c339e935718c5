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

_MARKED: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MARK: Final = "\ufeff"


def storable(text: str) -> str:
    """``text`` with backslash escapes for what UTF-8 cannot hold: half of a surrogate pair, or a byte of a name in another encoding."""
    return text.encode(errors="backslashreplace").decode()


def text_of(data: bytes, encoding: str | None) -> str:
    """The text of a caption: by its byte order mark; else UTF-8; else in ``encoding``, if one was declared.

    Raises :class:`RowRejectedError`: a guess at another encoding would train on wrong letters.
    """
    marked = next((name for mark, name in _MARKED if data.startswith(mark)), None)
    try:
        return data.decode(marked or "utf-8")
    except UnicodeDecodeError as error:
        if marked is not None or encoding is None:
            raise RowRejectedError(Reason.UNREADABLE_CAPTION) from error
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise RowRejectedError(Reason.UNREADABLE_CAPTION) from error


def checked_caption(text: str) -> str:
    """``text`` without blanks and byte order marks around it. Raises :class:`RowRejectedError` if it is no caption."""
    caption = text.strip().strip(_MARK).strip()
    if not caption:
        raise RowRejectedError(Reason.EMPTY_CAPTION)
    try:
        num_bytes = len(caption.encode())
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise RowRejectedError(Reason.UNREADABLE_CAPTION) from error
    if num_bytes > MAX_CAPTION_BYTES:
        raise RowRejectedError(Reason.CAPTION_TOO_LONG)
    if "\0" in caption:  # UTF-16 without its mark, mostly
        raise RowRejectedError(Reason.UNREADABLE_CAPTION)
    return caption


def facts_in(data: bytes, encoding: str | None) -> Mapping[str, Any]:
    """The JSON object that ``data`` holds; nothing if it holds none.

    JSON has UTF-8, UTF-16 or UTF-32; else it is read in ``encoding``. Raises :class:`RowRejectedError` for bytes that are no text.
    """
    try:
        try:
            facts = json.loads(data)
        except UnicodeDecodeError:
            facts = json.loads(text_of(data, encoding))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
