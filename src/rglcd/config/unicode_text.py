"""Text that can be written down: JSON and YAML can spell half of a surrogate pair (``"\\ud800"``), which no file in UTF-8 holds."""

from collections.abc import Mapping
from typing import Any

from rglcd.errors import InputError


def require_unicode(values: Any, *, where: str, path: tuple[str, ...] = ()) -> None:
    """Raises :class:`InputError`, beginning with ``where``, for a key or a value within plain ``values`` that is no Unicode text."""
    match values:
        case str():
            _require_text(values, where, path)
        case Mapping():
            for key, value in values.items():
                _require_text(str(key), where, path)
                require_unicode(value, where=where, path=(*path, str(key)))
        case list() | tuple():
            for number, value in enumerate(values):
                require_unicode(value, where=where, path=(*path, str(number)))


def _require_text(text: str, where: str, path: tuple[str, ...]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        key = f"{'.'.join(path)}: " if path else ""
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"{where}: {key}{text!a} is no text: {half} is half of a surrogate pair; write the character itself") from None
