"""Reading the tables of a report's images (``draws/<sampler>/scores.csv``) without the computation that made them."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rglcd.errors import InputError

_FORMULAS: Final = ("'=", "'+", "'-", "'@", "'\t", "'\r")
"""How a caption begins that was made inert for programs for tables."""

OTHER_VALUES: Final = ("high_frequency", "saturation")


@dataclass(frozen=True)
class ScoreTable:
    """A row for each image: its caption, and values by name, of each scorer and of :data:`OTHER_VALUES`."""

    captions: tuple[str, ...]
    values: dict[str, tuple[float, ...]]

    @property
    def scorers(self) -> list[str]:
        return [name for name in self.values if name not in OTHER_VALUES]


def read_score_table(path: Path) -> ScoreTable:
    """The table at ``path``. Raises :class:`InputError` if it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        if header[0] != "image" or header[-1] != "caption":
            raise ValueError("its columns are others")
        columns = {name: tuple(float(row[place]) for row in rows) for place, name in enumerate(header[1:-1], start=1)}
        return ScoreTable(tuple(_as_written(row[-1]) for row in rows), columns)
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path} is no table of scores ({error}); make it again: rglcd run evaluate") from None


def _as_written(caption: str) -> str:
    return caption[1:] if caption.startswith(_FORMULAS) else caption
