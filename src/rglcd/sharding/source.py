"""The source index: CC12M's own format, one row a line, ``url TAB caption``, UTF-8, no header.

An http or https url is fetched, if that was asked for. A url without a scheme is the path of a file relative to the index,
inside the folder ``images`` beside it. A row is hostile text: whatever it holds, it becomes a :class:`Row` or is refused for one
:class:`~rglcd.sharding.accounting.Reason`.
"""

import errno
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from rglcd.errors import InputError, TryAgain
from rglcd.sharding.accounting import Fault, Reason, RowRejectedError
from rglcd.sharding.content_store import Fetched
from rglcd.sharding.download import Downloader
from rglcd.sharding.texts import checked_caption, storable, text_of

INDEX: Final = "index.tsv"
"""The index of the training images, within the source folder."""

IMAGES: Final = "images"
"""The folder beside the index in which images of its rows lie."""

IMAGE_EXTENSIONS: Final = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "mpo", "jpg_large", "png", "apng", "webp", "gif", "bmp"}
)
"""Of the files that are taken for images, in lower case; what a file is, its bytes say. Browsers save .jfif and .jpg_large."""

MAX_ROW_BYTES: Final = 64 << 10
MAX_IMAGE_BYTES: Final = 20 << 20

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG})


@dataclass(frozen=True)
class Row:
    """One well-formed row: a url of any scheme or none, and a caption without blanks around it."""

    url: str
    caption: str


@dataclass(frozen=True)
class Candidate:
    """What a row of any source offers: the bytes of an image, or the ``reason`` there are none, with the ``fault`` behind it.

    Every file that is written of it holds UTF-8, so text that UTF-8 cannot hold ends here, whatever source it came from, and so does
    text longer than a row of an index: a parquet file of megabytes in each row would not be written.
    """

    url: str | None
    caption: str | None
    image: bytes | None
    reason: Reason | None = None
    fault: Fault | None = None

    def __post_init__(self) -> None:
        for name in ("url", "caption"):
            text = getattr(self, name)
            object.__setattr__(self, name, None if text is None else storable(text[:MAX_ROW_BYTES])[:MAX_ROW_BYTES])


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of an index, and where in the file they begin."""

    offset_bytes: int
    num_rows: int


@dataclass(frozen=True)
class IndexSource:
    """An index cut into ranges of rows, each of which makes a shard; ``downloader`` fetches what is not in its folder.

    Captions that are not UTF-8 are in ``encoding``.
    """

    index: Path
    ranges: Sequence[RowRange]
    downloader: Downloader | None
    encoding: str | None = None

    @property
    def num_shards(self) -> int:
        return len(self.ranges)

    @property
    def num_rows(self) -> int | None:
        return sum(rows.num_rows for rows in self.ranges)

    def candidates(self, number: int) -> Iterator[Candidate]:
        """What each row of range ``number`` offers, in order."""
        lines = (_parsed(line, self.encoding) for line in read_lines(self.index, self.ranges[number]))
        if self.downloader is None:
            yield from (self._at_hand(row) for row in lines)
            return
        rows, ahead = tee(lines)
        fetched = self.downloader.fetch_in_order(row.url if isinstance(row, Row) and _is_remote(row.url) else None for row in ahead)
        for row, answer in zip(rows, fetched, strict=True):
            yield self._at_hand(row) if answer is None or isinstance(row, Candidate) else self._from_store(row, answer)

    def _at_hand(self, row: Row | Candidate) -> Candidate:
        if isinstance(row, Candidate):
            return row
        try:
            if _SCHEME.match(row.url) is None and PurePosixPath(row.url).parts[:1] != (IMAGES,):
                raise RowRejectedError(Reason.FORBIDDEN_PATH)  # what lies elsewhere does not enter the key
            return Candidate(row.url, row.caption, read_image(row.url, self.index.parent))
        except RowRejectedError as rejected:
            return Candidate(row.url, row.caption, None, rejected.reason, rejected.fault)

    def _from_store(self, row: Row, answer: Fetched) -> Candidate:
        if answer.sha256 is None:
            return Candidate(row.url, row.caption, None, answer.reason)
        assert self.downloader is not None
        data = self.downloader.store.read(answer.sha256)
        if data is None:
            raise TryAgain(f"{self.downloader.store.path(answer.sha256)} went while it was needed; run the same command again")
        return Candidate(row.url, row.caption, data)


def split_rows(index: Path, rows_each: int, *, max_rows: int | None = None) -> list[RowRange]:
    """The rows of ``index`` (the first ``max_rows``) cut into ranges of ``rows_each``; the last may be shorter.

    Raises :class:`InputError` when the file is missing or empty.
    """
    ranges: list[RowRange] = []
    with _opened(index) as stream:
        while True:
            offset, left = stream.tell(), None if max_rows is None else max_rows - len(ranges) * rows_each
            wanted = rows_each if left is None else min(rows_each, left)
            num_rows = sum(1 for _ in _lines(stream, wanted))
            if num_rows:
                ranges.append(RowRange(offset, num_rows))
            if num_rows < rows_each:
                break
    if not ranges:
        raise InputError(f"{index} is empty; expected one row a line: url TAB caption")
    return ranges


def read_lines(index: Path, rows: RowRange | None = None) -> Iterator[bytes]:
    """The lines of ``rows`` (default: all), without their ends; a line too long comes cut, so a huge one costs no memory."""
    with _opened(index) as stream:
        if rows is not None:
            stream.seek(rows.offset_bytes)
        yield from _lines(stream, None if rows is None else rows.num_rows)


def parse_row(line: bytes, encoding: str | None = None) -> Row:
    """The row that ``line`` holds; a caption that is not UTF-8 is in ``encoding``.

    Raises :class:`RowRejectedError`, with the url if the fault is the caption's.
    """
    is_cut = len(line) > MAX_ROW_BYTES  # by read_lines: what follows is not known
    first, tab, second = line.partition(b"\t")
    try:
        url = first.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RowRejectedError(Reason.MALFORMED_ROW) from error
    if not url or not tab or "\0" in url or (b"\t" in second and not is_cut):
        raise RowRejectedError(Reason.MALFORMED_ROW)
    if is_cut:
        raise RowRejectedError(Reason.CAPTION_TOO_LONG, url)
    try:
        return Row(url, checked_caption(text_of(second, encoding)))
    except RowRejectedError as rejected:
        raise RowRejectedError(rejected.reason, url) from rejected.__cause__


def in_utf8(line: bytes, encoding: str) -> bytes:
    """``line`` of an index with its caption in UTF-8; a caption that is not in ``encoding`` either stays, for ``shard`` to count."""
    url, tab, caption = line.partition(b"\t")
    try:
        return url + tab + text_of(caption, encoding).encode()
    except RowRejectedError:
        return line


def read_image(url: str, folder: Path) -> bytes:
    """The bytes of the image at ``url``, a path within ``folder``. Raises :class:`RowRejectedError`.

    A failing disk is no row's fault and raises ``OSError`` as it is.
    """
    scheme = _SCHEME.match(url)
    if scheme is not None and scheme[1].lower() not in ("http", "https"):
        raise RowRejectedError(Reason.FORBIDDEN_SCHEME)
    if scheme is not None:
        raise RowRejectedError(Reason.NOT_DOWNLOADED if _is_remote(url) else Reason.MALFORMED_URL)
    path = PurePosixPath(url)
    if path.is_absolute() or ".." in path.parts or "\\" in url:
        raise RowRejectedError(Reason.FORBIDDEN_PATH)
    try:
        return _read_within(folder / path, folder)
    except OSError as error:
        if error.errno in _ABSENT:
            raise RowRejectedError(Reason.MISSING_FILE) from error
        raise


def _read_within(path: Path, folder: Path) -> bytes:
    try:
        real = path.resolve(strict=True)
    except RuntimeError:  # how pathlib reports a loop of links before Python 3.13
        raise RowRejectedError(Reason.FORBIDDEN_PATH) from None
    if not real.is_relative_to(folder.resolve()):
        raise RowRejectedError(Reason.FORBIDDEN_PATH)
    if not stat.S_ISREG(real.stat().st_mode):
        raise RowRejectedError(Reason.MISSING_FILE)
    with real.open("rb") as stream:
        data = stream.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise RowRejectedError(Reason.TOO_LARGE)
    return data


def _parsed(line: bytes, encoding: str | None) -> Row | Candidate:
    try:
        return parse_row(line, encoding)
    except RowRejectedError as rejected:
        return Candidate(rejected.url, None, None, rejected.reason, rejected.fault)


def _is_remote(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _opened(index: Path) -> BinaryIO:
    if not index.is_file():
        raise InputError(f"{index} is missing: the source index, one row a line: url TAB caption")
    return index.open("rb")


def _lines(stream: BinaryIO, limit: int | None) -> Iterator[bytes]:
    """At most ``limit`` lines from where ``stream`` stands, each cut to one byte more than a row may have."""
    count = 0
    while count != limit and (line := stream.readline(MAX_ROW_BYTES + 2)):
        rest = line
        while not rest.endswith(b"\n") and (rest := stream.readline(MAX_ROW_BYTES)):
            pass
        yield line.removesuffix(b"\n").removesuffix(b"\r")[: MAX_ROW_BYTES + 1]
        count += 1
