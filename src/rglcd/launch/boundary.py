"""The outermost layer of every ``main``: an error that nothing else has handled ends the process with one line and an exit code."""

import errno
import io
import os
import select
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TextIO

from rglcd.errors import UNEXPECTED, InputError, lack_of_memory
from rglcd.extras import missing_extra
from rglcd.launch.failure import ERROR_FILE, KNOWN, LINE, Failure, JobError, write_failure

_INTERRUPTED = 128 + 2  # as shells count an end by SIGINT
_PIPE_CLOSED = 128 + 13  # and by SIGPIPE

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)

_LONGEST = 300
"""Characters of an unexpected error's message in its line; the traceback has all of it."""


@contextmanager
def process_boundary() -> Iterator[None]:
    """Around a ``main``: an error becomes one line on stderr, the error file if there is one, and an exit code.

    The errors of rglcd have their own codes; a file that this user may not use is a wrong input. Any other is unexpected, a bug: 70, and
    its traceback is in a file that the line names; in a pod, whose files go with it, in the log too. A reader of our output that goes
    away (``| head``) is no error.
    """
    try:
        with _flushing_stdout():
            yield
    except (*KNOWN, JobError) as error:
        _end(Failure(_one_line(error), error.exit_code))
    except KeyboardInterrupt:
        # Not into the error file: whoever started this process has got the signal too, and knows what was interrupted.
        _print_failure("interrupted; the same command goes on from what is saved")
        raise SystemExit(_INTERRUPTED) from None
    except Exception as error:
        missing = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None:
            _end(Failure(missing, InputError.exit_code))
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise SystemExit(_PIPE_CLOSED) from None
        if isinstance(error, OSError) and error.errno in _DENIED and error.filename is not None:
            _end(Failure(_denied(Path(os.fsdecode(error.filename)), str(error.strerror)), InputError.exit_code))
        _end(_unexpected(error))


@contextmanager
def _flushing_stdout() -> Iterator[None]:
    """Write what is buffered before the end: at the interpreter's own end nobody could handle a reader that has gone."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _end(failure: Failure) -> NoReturn:
    error_file = os.environ.get(ERROR_FILE)
    if error_file:
        write_failure(Path(error_file), failure)
    _print_failure(failure.message)
    raise SystemExit(failure.exit_code) from None


def _print_failure(message: str) -> None:
    if "RANK" not in os.environ:  # a rank's launcher says it, once for all ranks
        with suppress(BrokenPipeError):
            print(LINE.format(message=message), file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _denied(path: Path, why: str) -> str:
    """What to say of a file that this user may not read, write or make: a folder of another user's, a fresh volume of root's."""
    there = next((place for place in (path, *path.parents) if os.access(place, os.F_OK)), path)
    owner, advice = "", "give it to this user, or name another folder"
    with suppress(OSError):
        found = there.stat()
        owner = f" ({there} is user {found.st_uid}'s, mode {stat.S_IMODE(found.st_mode):04o})"
        if found.st_uid == 0 and _is_in_a_pod():
            advice = "if it is a fresh claim's, the Job of manifests/fresh-claim gives it to this user (docs/operations.md)"
    return f"{path}: {why.lower()} for user {os.getuid()}{owner}; {advice}"


# --- unexpected errors ---------------------------------------------------------------------------


def _unexpected(error: Exception) -> Failure:
    what = f"{type(error).__name__}: {_one_line(error)[:_LONGEST]}"
    text = "".join(traceback.format_exception(error))
    if _is_in_a_pod():
        print(text, file=sys.stderr, end="", flush=True)
    said = "unexpected error, please report it"
    if lack_of_memory(error) == "certain":
        what, said = f"{what}; work on less at once: `rglcd plan` says what a GPU holds, its --help what to lower", "out of memory"
    return Failure(f"{said}: {what}; {_keep(text)}", UNEXPECTED)


def _keep(text: str) -> str:
    """Write a traceback to a file that only this process can have named; say where it is."""
    path = Path(tempfile.gettempdir()) / f"rglcd-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.traceback"
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as refused:
        with suppress(OSError):
            print(text, file=sys.stderr, end="", flush=True)
        return f"no file could be written ({refused.strerror}), so its traceback is above"
    return f"its traceback is in {path}"


def _is_in_a_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ or "RGLCD_POD_NAME" in os.environ


def _reader_is_gone() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more; if so, nothing more is written there."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream)]
    for stream in gone:
        # What is buffered still would be written, and refused, at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _is_closed_pipe(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # captured, by a test or a notebook
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
