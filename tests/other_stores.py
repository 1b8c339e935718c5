"""A proxy before the object store of the tests that answers as other stores do, where their documentation says that they differ."""

import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tests.object_store import ForwardingHandler, Proxy

_ETAG: Final = re.compile(rb"(<ETag>(?:&quot;|\")?)([0-9a-f]{32})")


class Difference(StrEnum):
    KMS_ETAGS = "the ETags of encrypted objects are 32 hexadecimal digits and no MD5"
    FALSE_ETAGS = "the ETags are not the MD5 of what is given, and nothing says that it is encrypted"
    NO_CHECKSUMS_GIVEN = "no x-amz-checksum header is answered"
    NO_CONDITIONAL_PUT = "If-None-Match is answered by 501"
    CONDITIONS_IGNORED = "If-None-Match is not looked at"
    NO_CHECKSUMS_TAKEN = "x-amz-checksum-* and trailing checksums are answered by 400"
    REDIRECTED = "every request is answered by 301, without saying where to"
    READ_ONLY = "what writes is answered by 403"
    DELETES_NOTHING = "DELETE is answered by 403"
    DAMAGED = "what is read begins with another byte than what was written"


@dataclass
class OtherStore(Proxy):
    """Forwards to ``upstream`` but for its ``differences``; counts what it was asked, by method and path, and how much at a time."""

    upstream: str
    differences: set[Difference] = field(default_factory=set)
    seconds: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        other = self

        class Handler(_OtherHandler):
            store, upstream = other, other.upstream

        self.serve(Handler)


class _OtherHandler(ForwardingHandler):
    store: OtherStore

    def _forward(self) -> None:
        with self.store.lock:
            self.store.asked[f"{self.command} {self.path.partition('?')[0]}"] += 1
            self.store.under_way += 1
            self.store.most_at_once = max(self.store.most_at_once, self.store.under_way)
        time.sleep(self.store.seconds)
        self._answer_differently()
        with self.store.lock:
            self.store.under_way -= 1

    def _answer_differently(self) -> None:
        body, sent, has = self._body(), dict(self.headers.items()), self.store.differences
        names = {name.lower() for name in sent}
        takes_checksum = any(name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum", "x-amz-trailer")) for name in names)
        writes = self.command in ("PUT", "POST", "DELETE")
        if Difference.REDIRECTED in has:
            self._refuse(
                301, "PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified endpoint."
            )
        elif (writes and Difference.READ_ONLY in has) or (self.command == "DELETE" and Difference.DELETES_NOTHING in has):
            self._refuse(403, "AccessDenied", "Access Denied")
        elif "if-none-match" in names and Difference.NO_CONDITIONAL_PUT in has:
            self._refuse(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        elif writes and takes_checksum and Difference.NO_CHECKSUMS_TAKEN in has:
            self._refuse(400, "InvalidArgument", "x-amz-checksum-crc32 is not supported")
        else:
            if Difference.CONDITIONS_IGNORED in has:
                sent = {name: value for name, value in sent.items() if name.lower() != "if-none-match"}
            status, answered, content = self._upstream(sent, body)
            if Difference.DAMAGED in has and self.command == "GET" and "list-type" not in self.path:
                content = bytes([content[0] ^ 1]) + content[1:]
            self._answer(status, self._altered(answered), _ETAG.sub(_other, content) if self._alters_etags() else content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815 (http.server's names)

    def _alters_etags(self) -> bool:
        altering = {Difference.KMS_ETAGS, Difference.FALSE_ETAGS} & self.store.differences
        return bool(altering) and self.command in ("GET", "HEAD")

    def _altered(self, answered: Mapping[str, str]) -> dict[str, str]:
        headers = {name.lower(): value for name, value in answered.items()}
        if Difference.NO_CHECKSUMS_GIVEN in self.store.differences:
            headers = {name: value for name, value in headers.items() if not name.startswith("x-amz-checksum-")}
        if self._alters_etags() and "etag" in headers:
            headers["etag"] = f'"{_other_digits(headers["etag"].strip(chr(34)).encode())}"'
            if Difference.KMS_ETAGS in self.store.differences:
                headers["x-amz-server-side-encryption"] = "aws:kms"
        if "content-length" in headers:
            headers["Content-Length"] = headers.pop("content-length")
        return headers

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
        self._answer(status, {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else content)


def _other(match: re.Match[bytes]) -> bytes:
    return match[1] + _other_digits(match[2]).encode()


def _other_digits(etag: bytes) -> str:
    return hashlib.md5(b"sealed " + etag, usedforsecurity=False).hexdigest()
