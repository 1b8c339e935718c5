"""The table of a sampler's images (``draws/<sampler>/scores.csv``): a row for each, which programs for tables open too."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rglcd.errors import InputError

OTHER_VALUES: Final = ("high_frequency", "saturation")
"""Columns beside those of the scorers."""

UNASKED_TEXT: Final = "unasked_text"
"""The column of a table whose images were read, after all others: 1 where there is text that the caption does not quote."""

_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that programs for tables take for a formula: https://owasp.org/www-community/attacks/CSV_Injection"""

LONGEST_CAPTION: Final = 10_000
"""Characters that are kept of a caption."""


@dataclass(frozen=True)
class ScoreTable:
    """A row for each image: its caption, its scores by scorer (NaN: it has none), and its :data:`OTHER_VALUES`, whose names a scorer may
    have too; :data:`UNASKED_TEXT`, if the images were read."""

    captions: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    others: dict[str, tuple[float, ...]]
    unasked_text: tuple[float, ...] | None = None


def write_score_table(
    path: Path,
    scores: Mapping[str, Sequence[float]],
    others: Mapping[str, Sequence[float]],
    captions: Sequence[str],
    unasked_text: Sequence[float] | None = None,
) -> None:
    """A row for each image: its number, its ``scores``, its ``others``, which are :data:`OTHER_VALUES`, its caption, and ``unasked_text``.

    Python writes as many digits of a number as read back to the same one.
    """
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        # Before 3.11.9 and 3.12.3 a carriage return is not quoted, and read as the end of a row: https://github.com/python/cpython/issues/67044
        quoting = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        read = [] if unasked_text is None else [unasked_text]
        writer.writerow(["image", *scores, *OTHER_VALUES, "caption", *([UNASKED_TEXT] if read else [])])
        columns = (*scores.values(), *(others[name] for name in OTHER_VALUES))
        for number, (caption, *values) in enumerate(zip(captions, *columns, *read, strict=True)):
            last = values[len(columns) :]
            row = [number, *values[: len(columns)], _inert(caption[:LONGEST_CAPTION]), *last]
            (quoting if "\r" in caption else writer).writerow(row)


def read_score_table(path: Path) -> ScoreTable:
    """What :func:`write_score_table` wrote to ``path``. Raises :class:`InputError` if that is no such table."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        end = len(header) - (header[-1] == UNASKED_TEXT)
        if header[0] != "image" or tuple(header[end - 3 : end]) != (*OTHER_VALUES, "caption"):
            raise ValueError("its columns are others")
        columns = [(name, tuple(float(row[place]) for row in rows)) for place, name in enumerate(header[1 : end - 1], start=1)]
        captions = tuple(_as_written(row[end - 1]) for row in rows)
        unasked = tuple(float(row[end]) for row in rows) if end < len(header) else None
        return ScoreTable(captions, dict(columns[:-2]), dict(columns[-2:]), unasked)
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path} is no table of scores ({error}); make it again: rglcd run evaluate") from None


def _inert(caption: str) -> str:
    return f"'{caption}" if _is_formula(caption) else caption


def _as_written(caption: str) -> str:
    return caption[1:] if caption[:1] == "'" and _is_formula(caption[1:]) else caption


def _is_formula(caption: str) -> bool:
    """Also one behind quotation marks of its own, which else would be taken for ours."""
    return caption.lstrip("'").startswith(_FORMULAS)
