"""What the first rows of an index say about all of them: an index whose every row would be refused is refused at once, with the way out."""

import codecs
import re
from itertools import islice
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.sharding.source import IMAGES, read_lines

_LOOKED_AT: Final = 100
_URL: Final = re.compile(r"\s*https?://\S+\s*", re.IGNORECASE)
_HEADERS: Final = (
    frozenset({"url", "image_url", "image", "image_link", "link", "path", "image_path", "file", "file_name", "filename"}),
    frozenset({"caption", "text", "alt", "alt_text", "description", "prompt"}),
)


def check_layout(index: Path, *, called: str) -> list[str]:
    """Lines that say what is odd about ``index``, which the user calls ``called``.

    Raises :class:`InputError` if its columns stand the other way round, as CC3M's do, and for UTF-16.
    """
    lines = list(islice(read_lines(index), _LOOKED_AT))
    if lines and lines[0].startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{called} is UTF-16; an index is UTF-8: iconv -f UTF-16 -t UTF-8 FILE > utf8.tsv, and take that")
    fields = (line.decode("utf-8-sig", errors="replace").split("\t") for line in lines)
    rows = [(first, second) for first, second, *more in (row for row in fields if len(row) > 1) if not more]
    num_swapped = sum(_URL.fullmatch(second) is not None for _, second in rows)
    if rows and 2 * num_swapped >= len(rows) and not any(_is_place(first) for first, _ in rows):
        raise InputError(
            f"{called} has the caption before the url (row 1: {rows[0][0][:60]!r}); an index is url TAB caption. Swap them: "
            "awk -F'\\t' -v OFS='\\t' '{print $2, $1}' FILE > swapped.tsv, and take that"
        )
    if rows and all(text.strip().lower() in names for text, names in zip(rows[0], _HEADERS, strict=True)):
        return [f"row 1 of {called} is a header by its looks ({' TAB '.join(rows[0])}): it counts as a row without an image"]
    return []


def _is_place(text: str) -> bool:
    return _URL.fullmatch(text) is not None or text.startswith(f"{IMAGES}/")
