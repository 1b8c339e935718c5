"""Rows that something raised an exception at, in the log: the first of each kind in a line each, the others by their number."""

import logging
from collections import Counter
from typing import Final

from rglcd.sharding.accounting import Fault, Reason

SHOWN: Final = 3
"""Lines of one kind, a reason and a class of exception: millions of rows of an index may be of the same."""

_LOG: Final = logging.getLogger(__name__)
_MAX_TEXT: Final = 200


class RefusalLog:
    """What a process has met. Urls and messages hold what strangers wrote, so they are logged as ASCII."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Reason, str]] = Counter()

    def add(self, row: str, reason: Reason, fault: Fault) -> None:
        """Count ``row``, which became no sample for ``reason`` since ``fault`` was raised."""
        kind = reason, fault.name
        self._counts[kind] += 1
        if self._counts[kind] <= SHOWN:
            _LOG.warning("%s: %s: %s: %s", ascii(row[:_MAX_TEXT])[1:-1], reason, fault.name, ascii(fault.message[:_MAX_TEXT])[1:-1])

    def close(self) -> None:
        """Say how many more there were of each kind."""
        for (reason, name), count in sorted(self._counts.items()):
            if count > SHOWN:
                _LOG.warning("%s: %s: and %d more", reason, name, count - SHOWN)
        self._counts.clear()
