"""A source folder while a command makes it: for that command alone."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rglcd.errors import TryAgain
from rglcd.store.locks import try_exclusive_lock
from rglcd.store.staging import STAGING

_LOCK: Final = f".writer.lock{STAGING}"


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made if need be, and gone again if nothing comes of it.

    Raises :class:`TryAgain` while another command holds it: an index and the images that it names are put in force by two renames, so
    that one command's rows would name another's images.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with try_exclusive_lock(lock := folder / _LOCK) as is_ours:
            if not is_ours:
                raise TryAgain(f"another rglcd data command is making {folder}; when it has ended, run the same command again")
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except BaseException:
        if is_new:
            with suppress(OSError):  # what it does not want to lose keeps the folder
                folder.rmdir()
        raise
