"""What an object store can do: found out with one small object, once a process, before anything is written there.

S3 is an interface of many stores, and some lack parts of it. Without conditional puts (``If-None-Match: *``) nobody can tell which of
two writers was first: one writer alone may go on. Without checksums in requests (``x-amz-checksum-*``) none are sent: what is uploaded is
read back and compared in any case.
"""

import sys
import threading
from dataclasses import dataclass
from itertools import product
from typing import Any, Final
from uuid import uuid4

from rglcd.errors import InputError, TryAgain
from rglcd.store.connection import attempts, is_s3, make_parent, open_url, send_checksums, store_of, with_retries
from rglcd.store.refusals import RefusedError

_CONTENT: Final = b"written to see what this store can do; it may be removed"
_MATTERS_HOW: Final = frozenset({400, 403, 501})
"""The answers to a put that may be of its headers: 403 because a trailing checksum that a store does not know spoils the signature."""


@dataclass(frozen=True)
class Abilities:
    """What a store was seen to do, beside giving back what it was given."""

    conditional_put: bool = True
    checksums: bool = True
    deletes: bool = True

    def shortcomings(self) -> list[str]:
        """What a run does without, a line each."""
        lines = []
        if not self.conditional_put:
            lines.append("the store has no conditional put (If-None-Match): one process at a time may write there, and no parts")
        if not self.checksums:
            other = "other tools need AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
            lines.append(f"the store takes no checksums with what it is sent (x-amz-checksum-*): none are sent; {other}")
        return lines


_found: Final = dict[tuple[str, str], Abilities]()
_looking: Final = threading.Lock()


def open_to_write(uri: str) -> tuple[Any, str, Abilities]:
    """fsspec's file system for ``uri``, the path in it, in a folder that is there afterwards, and what the store can do.

    Raises :class:`InputError` when the store refuses to be written to, :class:`TryAgain` when it does not answer.
    """
    abilities = abilities_of(uri.rpartition("/")[0])
    filesystem, path = open_url(uri)
    make_parent(filesystem, path)
    return filesystem, path, abilities


def abilities_of(folder: str) -> Abilities:
    """What the store of the folder ``folder`` can do: looked at once in a process, and what it lacks is said then.

    Raises what :func:`probe` does.
    """
    if not is_s3(open_url(folder)[0]):
        return Abilities()
    with _looking:
        if (known := _found.get(store_of(folder))) is None:
            known = _found[store_of(folder)] = probe(folder)
            for line in known.shortcomings():
                print(f"rglcd: {folder}: {line}", file=sys.stderr)
    return known


def probe(folder: str) -> Abilities:
    """What the object store of ``folder`` can do: an object is put there, put again, read and deleted.

    Raises :class:`InputError` when the store refuses to be written to, :class:`TryAgain` when it does not answer. From then on this
    process's requests to it carry checksums only if it takes them.
    """
    for _ in attempts():
        uri = f"{folder.rstrip('/')}/.rglcd-probe-{uuid4().hex}"
        checksums, conditional_put = _put_as_it_is_taken(uri)
        if conditional_put and _put(uri, is_conditional=True):  # a store that does not look at the condition puts it again
            conditional_put = False
        is_whole = _reads_back(uri)
        deletes = _delete(uri)
        if is_whole:
            return Abilities(conditional_put, checksums, deletes)
    raise TryAgain(f"{folder} does not give back what is written to it; run the same command again")


def _put_as_it_is_taken(uri: str) -> tuple[bool, bool]:
    """Put the object; whether the store took it with a checksum, and with a condition.

    Raises the first refusal if the store takes it in no way.
    """
    first: RefusedError | None = None
    for checksums, is_conditional in product((True, False), repeat=2):
        send_checksums(uri, wanted=checksums)
        try:
            _put(uri, is_conditional=is_conditional)
        except RefusedError as refused:
            if refused.status not in _MATTERS_HOW:
                raise
            first = first or refused
        else:
            return checksums, is_conditional
    send_checksums(uri, wanted=True)
    assert first is not None
    raise first


def _put(uri: str, *, is_conditional: bool) -> bool:
    """Whether the object was put: not if it is there already, and the store looks at the condition."""
    filesystem, path = open_url(uri)
    try:
        with_retries(lambda: filesystem.pipe_file(path, _CONTENT, mode="create" if is_conditional else "overwrite"), what=uri)
    except FileExistsError:  # of the first put: it was answered, and the answer was lost
        return False
    return True


def _reads_back(uri: str) -> bool:
    filesystem, path = open_url(uri)
    try:
        return bool(with_retries(lambda: filesystem.cat_file(path), what=uri) == _CONTENT)
    except FileNotFoundError:
        return False


def _delete(uri: str) -> bool:
    """Whether the object may be deleted; it is gone then."""
    filesystem, path = open_url(uri)
    try:
        with_retries(lambda: filesystem.rm_file(path), what=uri)
    except FileNotFoundError:
        pass
    except RefusedError:
        return False
    return True


def check_before_work(uri: str, *, num_writers: int = 1) -> None:
    """Raise :class:`InputError` if the store's folder ``uri`` cannot take the work of ``num_writers`` processes at a time.

    Raises what :func:`probe` does, too.
    """
    if not abilities_of(uri).conditional_put and num_writers > 1:
        advice = "run the stage whole, in one process, or use a store that has it"
        raise InputError(f"{uri}: the store has no conditional put (If-None-Match), and {num_writers} parts would write there; {advice}")
