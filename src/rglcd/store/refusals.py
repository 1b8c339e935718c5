"""What an object store refuses for good, and what may pass: the same request, repeated, meets the same answer."""

from typing import Final

from rglcd.errors import InputError

NO_BUCKET: Final = "NoSuchBucket"

_PASSING: Final = frozenset({307, 408, 409, 425, 429})
"""Below 500, and yet worth another attempt. 409 is S3's answer to writers who meet at one object; 307 that to a bucket just made."""
_DAMAGED_ON_THE_WAY: Final = frozenset(
    {"BadDigest", "IncompleteBody", "InvalidPart", "NoSuchUpload", "RequestTimeout", "XAmzContentSHA256Mismatch"}
)
"""S3 says these by a 4xx, and means what it received or kept of this one attempt."""
_SETTINGS: Final = frozenset({"NoCredentialsError", "PartialCredentialsError", "ParamValidationError"})
"""What botocore raises without asking the store."""


class RefusedError(InputError):
    """A store refuses a request. ``status`` and ``code`` are its words, 0 and empty where it was not even asked."""

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def raise_for_good(error: Exception, *, what: str) -> None:
    """Raise what ``error``, met when ``what`` was asked for, says if it says so for good; return if it may pass.

    Raises ``FileNotFoundError`` where an object is missing, ``FileExistsError`` where the condition that there be none is refused,
    :class:`RefusedError` for all else.
    """
    status, code = _answer(error)
    if code in _DAMAGED_ON_THE_WAY:
        return
    if code == NO_BUCKET:
        bucket = what.partition("://")[2].partition("/")[0] or what.partition("/")[0]
        raise RefusedError(f"{what}: there is no bucket {bucket}; mend its name, or create it", status, code) from None
    if isinstance(error, (FileNotFoundError, FileExistsError)):
        raise error
    if status == 404:
        raise FileNotFoundError(what) from None
    if status == 412:
        raise FileExistsError(what) from None
    if isinstance(error, RecursionError) or (300 <= status < 400 and status not in _PASSING):  # botocore follows one to itself
        advice = "set AWS_DEFAULT_REGION, or AWS_ENDPOINT_URL, to where the bucket lies"
        said = f"{what}: the store sends its requests elsewhere ({code or 'a redirect'}); {advice}"
        raise RefusedError(said, status or 301, code) from None
    if isinstance(error, PermissionError) or status in (401, 403):
        raise RefusedError(f"{what} may not be touched with these credentials: {one_line(error)}", status or 403, code) from None
    if type(error).__name__ in _SETTINGS:
        raise RefusedError(f"{what} cannot be reached: {one_line(error)}") from None
    if status == 501 or (400 <= status < 500 and status not in _PASSING):
        raise RefusedError(f"{what}: the store refuses it ({status} {code}): {one_line(error)}", status, code) from None


def one_line(error: BaseException) -> str:
    """An error's kind and words, as a part of a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _answer(error: BaseException) -> tuple[int, str]:
    """The HTTP status, and S3's name for the error, that a library's error was made from; 0 and nothing where there was no answer."""
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore's
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0), str(response.get("Error", {}).get("Code", ""))
        if isinstance(status := getattr(link, "status", None), int):  # aiohttp's
            return status, ""
        link = link.__cause__
    return 0, ""
