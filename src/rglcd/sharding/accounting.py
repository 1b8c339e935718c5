"""What became of every row of the source index: a sample, or one reason why not.

The identity ``rows = samples + sum(reasons)`` holds in every :class:`Tally`, so no row is lost unreported.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Loss(StrEnum):
    """Where on the way from a row to a sample a row was lost, in that order."""

    ROW = "row"
    BYTES = "bytes"
    IMAGE = "image"

    @property
    def survived(self) -> str:
        """What the rows did that were not lost there or before."""
        return {"row": "hold a url and a caption", "bytes": "gave bytes", "image": "became samples"}[self.value]


class Reason(StrEnum):
    """Why a row became no sample."""

    MALFORMED_ROW = "malformed_row"
    """Not ``url TAB caption``: blank, too long, no tab, more than one, or a url that is not UTF-8 or holds a NUL."""
    EMPTY_CAPTION = "empty_caption"
    CAPTION_TOO_LONG = "caption_too_long"
    UNREADABLE_CAPTION = "unreadable_caption"
    """Not what its byte order mark says; without one, neither UTF-8 nor in ``sharding.caption_encoding``; or it holds a NUL or half of a
    surrogate pair."""
    FORBIDDEN_SCHEME = "forbidden_scheme"
    """A scheme other than http and https (file:, ftp:, data:, s3: ...)."""
    FORBIDDEN_PATH = "forbidden_path"
    """A path that does not lie in ``images/`` beside the index, or leads out of the index's folder by ``..`` or by a link."""
    MISSING_FILE = "missing_file"
    """No readable regular file lies at the path."""

    NOT_DOWNLOADED = "not_downloaded"
    """An http or https url, and downloading was not asked for (``sharding.download``)."""
    MALFORMED_URL = "malformed_url"
    FORBIDDEN_ADDRESS = "forbidden_address"
    """The url or a redirect leads to an address that is neither public nor allowed."""
    UNRESOLVED = "unresolved"
    """The host's name has no address."""
    UNREACHABLE = "unreachable"
    """No connection, no trusted TLS, or a broken answer."""
    TIMED_OUT = "timed_out"
    TOO_SLOW = "too_slow"
    """The body came slower than the least rate."""
    CUT_SHORT = "cut_short"
    """The body ended before its announced length."""
    TOO_MANY_REDIRECTS = "too_many_redirects"
    OPTED_OUT = "opted_out"
    """The host keeps the image out of data sets (``X-Robots-Tag``)."""
    GONE = "gone"
    """404 or 410."""
    REFUSED = "refused"
    """401, 403 or 451."""
    HOST_BUSY = "host_busy"
    """408, 425 or 429, at the last attempt too."""
    SERVER_ERROR = "server_error"
    """5xx, at the last attempt too."""
    UNEXPECTED_ANSWER = "unexpected_answer"
    """Any other status than 200."""
    LOST_UPSTREAM = "lost_upstream"
    """The data set read from records the row as a sample, and its shard does not hold it."""
    FAILED_UPSTREAM = "failed_upstream"
    """The data set read from records the row as one that became no sample."""
    INCOMPLETE_SAMPLE = "incomplete_sample"
    """A ready-made shard's sample without an image or without a caption, or whose file is a link, a device or sparse."""
    UNKNOWN_EXTENSION = "unknown_extension"
    """A ready-made shard's sample whose file is not called as an image is; the url is its name."""
    REPEATED_MEMBER = "repeated_member"
    """A ready-made shard holds two files of this name: which caption belongs to which image is not known."""

    TOO_LARGE = "too_large"
    """More bytes or more pixels than an image may have."""
    UNKNOWN_FORMAT = "unknown_format"
    """Not a JPEG, PNG, WebP, GIF or BMP: often a web page that stands where an image was."""
    UNDECODABLE = "undecodable"
    """An image of a known format that is damaged."""
    TOO_SMALL = "too_small"
    """Its short side is below ``sharding.min_side``."""
    TOO_LONG = "too_long"
    """Its sides' ratio is above ``sharding.max_aspect``."""
    DUPLICATE = "duplicate"
    """An earlier row gave the same image (``sharding.deduplication``)."""

    @property
    def is_of_the_image(self) -> bool:
        """Whether bytes were found and were at fault; img2dataset counts these as ``failed_to_resize``."""
        return self.loss is Loss.IMAGE

    @property
    def loss(self) -> Loss:
        """Where rows are lost for this reason."""
        if self in _OF_THE_IMAGE:
            return Loss.IMAGE
        return Loss.ROW if self in _OF_THE_ROW else Loss.BYTES


_OF_THE_ROW: Final = frozenset(
    {
        Reason.MALFORMED_ROW,
        Reason.EMPTY_CAPTION,
        Reason.CAPTION_TOO_LONG,
        Reason.UNREADABLE_CAPTION,
        Reason.INCOMPLETE_SAMPLE,
        Reason.UNKNOWN_EXTENSION,
        Reason.REPEATED_MEMBER,
    }
)
_OF_THE_IMAGE: Final = frozenset(
    {Reason.TOO_LARGE, Reason.UNKNOWN_FORMAT, Reason.UNDECODABLE, Reason.TOO_SMALL, Reason.TOO_LONG, Reason.DUPLICATE}
)


@dataclass(frozen=True)
class Fault:
    """An exception that a row's bytes caused: the name of its class, and what it said, which may differ from machine to machine."""

    name: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> "Fault":
        """``OSError``, and with its module what is not built in: ``struct.error``."""
        kind = type(error)
        return cls(kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}", str(error))


class RowRejectedError(Exception):
    """A row becomes no sample, for ``reason``. Counted by whoever reads rows; never seen by a user. ``url`` is what is known of it.

    Raised ``from`` the exception that the row's bytes caused, if one did.
    """

    def __init__(self, reason: Reason, url: str | None = None) -> None:
        super().__init__(reason.value)
        self.reason, self.url = reason, url

    @property
    def fault(self) -> Fault | None:
        """What it was raised from."""
        return None if self.__cause__ is None else Fault.of(self.__cause__)


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
