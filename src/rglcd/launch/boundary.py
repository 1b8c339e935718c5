"""The outermost layer of every ``main``: what becomes of an error that nothing else has handled."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rglcd.launch.failure import ERROR_FILE, KNOWN, LINE, Failure, JobError, write_failure


@contextmanager
def process_boundary() -> Iterator[None]:
    """Around a ``main``: an error that the house knows becomes one line on stderr, the error file, and its exit code."""
    try:
        yield
    except (*KNOWN, JobError) as error:
        failure = Failure(" ".join(str(error).split()), error.exit_code)
        error_file = os.environ.get(ERROR_FILE)
        if error_file:
            write_failure(Path(error_file), failure)
        if "RANK" not in os.environ:  # a rank's launcher says it, once for all ranks
            print(LINE.format(message=failure.message), file=sys.stderr, flush=True)
        raise SystemExit(failure.exit_code) from None
