"""What an object store says of an object that nobody wrote a manifest for, and whether a copy of it is that object.

An ETag is the MD5 of an object only if it was put in one piece and no key of its own (SSE-KMS, SSE-C) encrypts it; it looks the same
where it is not. The checksums that newer stores keep (``x-amz-checksum-*``) are of the content, however it is encrypted.
"""

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rglcd.errors import TryAgain
from rglcd.store.connection import is_s3, with_retries
from rglcd.store.refusals import RefusedError

_MD5: Final = re.compile(r"[0-9a-f]{32}")
_CHUNK: Final = 1 << 20


def damage_in(copy: Path, filesystem: Any, path: str, *, etag: str) -> str | None:
    """What shows that ``copy`` is not the object at ``path`` that was listed with ``etag``; None where nothing does.

    Raises :class:`TryAgain` if another object lies there by now, ``FileNotFoundError`` if none does.
    """
    if not is_s3(filesystem):
        return None
    md5 = _digest(copy, "md5").hex() if _MD5.fullmatch(etag) else None
    if md5 == etag:
        return None
    said = _said_of(filesystem, path)
    is_the_same = said.get("ETag", "").strip('"') == etag
    if said and not is_the_same and _listed_etag(filesystem, path) != etag:  # some stores word it in a listing as nowhere else
        raise TryAgain(f"{path} changed while its folder was read; run the same command again")
    for field, checksum in _CHECKSUMS.items():
        if said.get(field) and said.get("ChecksumType") != "COMPOSITE" and "-" not in said[field]:
            found = base64.b64encode(checksum(copy)).decode()
            return None if found == said[field] else f"has {field} {found}, and the store says {said[field]}"
    is_encrypted = said.get("ServerSideEncryption") not in (None, "AES256") or "SSECustomerAlgorithm" in said
    if md5 is not None and is_the_same and not is_encrypted:
        return f"has md5 {md5}, and the store lists {etag}"
    return None


def _said_of(filesystem: Any, path: str) -> Mapping[str, Any]:
    """What the store says of the object beside its content; nothing where it refuses to (SSE-C wants the key for it)."""
    bucket, key, _ = filesystem.split_path(path)
    try:
        said: Mapping[str, Any] = with_retries(
            lambda: filesystem.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED"), what=path
        )
    except RefusedError:
        return {}
    return said


def _listed_etag(filesystem: Any, path: str) -> str:
    bucket, key, _ = filesystem.split_path(path)
    listed = with_retries(lambda: filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1), what=path)
    return next((str(one["ETag"]).strip('"') for one in listed.get("Contents", []) if one["Key"] == key), "")


def _digest(copy: Path, algorithm: str) -> bytes:
    with copy.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).digest()


def _crc32(copy: Path) -> bytes:
    state = 0
    with copy.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state = zlib.crc32(chunk, state)
    return state.to_bytes(4, "big")


_CHECKSUMS: Final[dict[str, Callable[[Path], bytes]]] = {
    "ChecksumSHA256": lambda copy: _digest(copy, "sha256"),
    "ChecksumSHA1": lambda copy: _digest(copy, "sha1"),
    "ChecksumCRC32": _crc32,
}
"""Those that can be computed with the standard library, by the names that ``head_object`` gives them."""
