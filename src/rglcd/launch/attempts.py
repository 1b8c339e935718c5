"""How often a run is tried, how long it pauses between attempts, and when it has had its time. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rglcd.launch.failure_table import Then
from rglcd.launch.job_reason import Reason

LONGEST_PAUSE = 600.0
WORKED_SECONDS = 1800.0
"""An attempt that worked this long got somewhere: the next one pauses as after a first failure."""
IN_A_ROW = 12
"""So many attempts may be ended by the cluster one after another before any worked for :data:`WORKED_SECONDS`: about an hour of pauses."""


@dataclass
class Attempts:
    """The attempts of one run and stage: the number of the next or present one, what failed before it, when the first began to work."""

    number: int = 1
    failures: int = 0
    began: datetime | None = None
    quick_ends: int = 0

    def note_work(self, since: datetime) -> None:
        """All pods of an attempt run."""
        self.began = since if self.began is None else min(self.began, since)

    def ended(self, reason: Reason, *, worked_seconds: float) -> float:
        """Note the end of an attempt; return the seconds to pause before the next."""
        self.number += 1
        self.quick_ends = 0 if worked_seconds >= WORKED_SECONDS else self.quick_ends + 1
        if reason.then is Then.COUNTED:
            self.failures += 1
        return min(reason.pause * 2.0 ** max(0, self.quick_ends - 1), LONGEST_PAUSE)

    @property
    def leads_nowhere(self) -> bool:
        return self.quick_ends >= IN_A_ROW

    def seconds_left(self, now: datetime, run_seconds: int) -> float:
        """Of the time that all attempts have together."""
        return run_seconds if self.began is None else (self.began + timedelta(seconds=run_seconds) - now).total_seconds()


def earliest(times: Iterable[datetime | None]) -> datetime | None:
    """The earliest time known."""
    known = [time.astimezone(UTC) for time in times if time is not None]
    return min(known) if known else None
