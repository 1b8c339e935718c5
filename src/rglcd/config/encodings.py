"""An encoding that captions may be in beside UTF-8: one of Python's names, in the spelling that enters a key."""

import codecs
from typing import Final

_LIKE: Final = "write latin-1, cp1252, gb18030, cp932, euc-kr, koi8-r or the like"
_ASCII: Final = bytes(range(128)), rb"\u0041"


def known_encoding(name: str) -> str:
    """Python's own spelling of the encoding ``name`` (``iso8859-1`` for ``latin-1``).

    Raises ``ValueError`` for one that is not known, and for one in which ASCII letters are other bytes: an index has its tabs and line
    ends between captions, and what is ASCII was read as UTF-8 before.
    """
    try:
        known = codecs.lookup(name).name
        has_ascii = all(data.decode(known) == data.decode("ascii") for data in _ASCII)
    except UnicodeDecodeError:
        has_ascii = False
    except (LookupError, ValueError):
        raise ValueError(f"{name!a} is no encoding of text that Python knows; {_LIKE}") from None
    if not has_ascii:
        raise ValueError(f"{name!a} has no ASCII letters (UTF-16 and UTF-32 are read by their byte order mark); {_LIKE}")
    return known
