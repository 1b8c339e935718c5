"""What a tracker is: something elsewhere that takes the figures of a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class UnreachableError(Exception):
    """The tracker does not answer for the moment."""


class RefusedError(Exception):
    """The tracker will not take this, however often it is asked; or it is not installed."""


@dataclass(frozen=True)
class Row:
    """Figures of ``task`` after ``step`` units of it, at ``seconds`` since the epoch."""

    task: str
    step: int
    values: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Tracked:
    """What is tracked: the stage, a digest that the same command has again, and its settings, flat, for people to filter by."""

    stage: str
    digest: str
    settings: Mapping[str, str]


class Tracker(Protocol):
    """Takes rows. Both methods are called from one thread, and raise :class:`UnreachableError` and :class:`RefusedError`."""

    def log(self, rows: Sequence[Row]) -> None:
        """Take all of ``rows``, or raise; rows that were taken may come a second time."""
        ...

    def end(self, outcome: str) -> None:
        """Nothing comes any more: the stage is ``finished``, ``stopped`` to be gone on with, or ``failed``."""
        ...
