"""Urls as their authors wrote them: a host that signs or compares the spelling answers 403 to any other.

Urls and redirects are hostile text: what is no url of a host ends as that row's reason.
"""

from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from yarl import URL

from rglcd.sharding.accounting import Reason, RowRejectedError

_KEPT: Final = "!#$%&'()*+,-./:;=?@[\\]^_|~"
"""What stands in a request as it is written, besides letters and digits. Browsers write the rest as %XX, and so must we: a blank or a
line break would end the request's first line."""


def requested(url: str) -> URL:
    """What is asked for: the host in ASCII (IDNA), path and query as written but for bytes that no request may hold.

    Raises :class:`RowRejectedError` for another scheme than http and https, and for what has no host.
    """
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
    except ValueError as error:
        raise RowRejectedError(Reason.MALFORMED_URL) from error
    if parts.scheme not in ("http", "https"):
        raise RowRejectedError(Reason.FORBIDDEN_SCHEME)
    if not has_host:
        raise RowRejectedError(Reason.MALFORMED_URL)
    try:
        origin = URL(f"{parts.scheme}://{parts.netloc}")
    except ValueError as error:
        raise RowRejectedError(Reason.MALFORMED_URL) from error
    query = f"?{_spelled(parts.query)}" if parts.query else ""
    return URL(f"{str(origin).rstrip('/')}{_spelled(parts.path) or '/'}{query}", encoded=True)


def redirected(url: URL, location: str) -> str:
    """Where the ``Location`` header of the answer to ``url`` leads; its bytes that are no ASCII are sent back as they came.

    Raises :class:`RowRejectedError` where it is no url.
    """
    try:
        return urljoin(str(url), _spelled(location))
    except ValueError as error:
        raise RowRejectedError(Reason.MALFORMED_URL) from error


def host_of(url: str) -> str:
    """The host's name in lower case; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _spelled(text: str) -> str:
    # aiohttp gives bytes of a header that are no UTF-8 as surrogates, by which they are found again.
    return quote(text.encode("utf-8", "surrogateescape"), safe=_KEPT)
