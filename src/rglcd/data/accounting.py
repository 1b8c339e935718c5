"""What became of every row of the source index: a sample, or one reason why not.

The identity ``rows = samples + sum(reasons)`` holds in every :class:`Tally`, so nothing is lost without a word.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why a row became no sample."""

    MALFORMED_ROW = "malformed_row"
    """Not ``url TAB caption`` in UTF-8: blank, too long, no tab, more than one, or a NUL."""
    EMPTY_CAPTION = "empty_caption"
    CAPTION_TOO_LONG = "caption_too_long"
    FORBIDDEN_SCHEME = "forbidden_scheme"
    """A scheme other than http and https (file:, ftp:, data:, s3: ...)."""
    FORBIDDEN_PATH = "forbidden_path"
    """A path that is absolute, or leads out of the index's folder by ``..`` or by a link."""
    NOT_DOWNLOADED = "not_downloaded"
    """An http or https url: rows are read from local folders only, so fetch the images first and index their paths."""
    MISSING_FILE = "missing_file"
    """No readable regular file lies at the path."""
    TOO_LARGE = "too_large"
    """More bytes or more pixels than an image may have."""
    UNDECODABLE = "undecodable"
    """Not an image of a known format, or a damaged one."""

    @property
    def is_of_the_image(self) -> bool:
        """Whether bytes were found and were at fault; img2dataset counts these as ``failed_to_resize``."""
        return self in (Reason.TOO_LARGE, Reason.UNDECODABLE)


class RowRejectedError(Exception):
    """A row becomes no sample, for ``reason``. Counted by whoever reads rows; never seen by a user."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Tally:
    """Counts that add up; ``reasons`` names those that occurred, in alphabetical order."""

    rows: int = 0
    samples: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.rows == self.samples + sum(self.reasons.values()), self

    def __str__(self) -> str:
        refused = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        return f"{self.rows} rows, {self.samples} samples" + (f", {refused}" if refused else "")


def total_of(tallies: Iterable[Tally]) -> Tally:
    """The sum of ``tallies``."""
    rows, samples, reasons = 0, 0, Counter[str]()
    for tally in tallies:
        rows += tally.rows
        samples += tally.samples
        reasons.update(tally.reasons)
    return Tally(rows, samples, dict(sorted(reasons.items())))
