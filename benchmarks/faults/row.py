"""A row of the matrix, and what came of one of its rounds."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from rglcd.progress import Event, reporting_to

Trial = Callable[[int], str]
"""One round, by its number: what was done and seen, in a line. Raises :class:`CriterionMissed` when what must hold does not."""


class CriterionMissed(Exception):  # noqa: N818 (it is named for what happened)
    """What must hold after a fault does not."""


def require(holds: bool, otherwise: str) -> None:
    """Raise :class:`CriterionMissed` with the words of ``otherwise`` unless it ``holds``."""
    if not holds:
        raise CriterionMissed(otherwise)


class Suite(StrEnum):
    """Where CI runs the sample of a row."""

    DEFAULT = "default"
    SLOW = "slow"


@dataclass(frozen=True)
class Row:
    """A fault, what must hold, and how often it is done.

    ``open`` prepares whatever its rounds share in a scratch folder, for a seed, and gives the trial. ``sample`` are the rounds
    that CI runs.
    """

    name: str
    fault: str
    must: str
    unit: str
    num_rounds: int
    sample: Sequence[int]
    open: Callable[[Path, int], AbstractContextManager[Trial]]
    suite: Suite = Suite.DEFAULT


@dataclass(frozen=True)
class Finished:
    """A round that was run: whether the criterion held, and in a line what was done and seen."""

    seed: int
    round: int
    passed: bool
    said: str
    seconds: float


def run_rounds(row: Row, rounds: Iterable[int], *, seed: int, scratch: Path) -> Iterator[Finished]:
    """Run ``rounds`` of ``row``, one after another. Whatever a round raises is a criterion missed."""
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        with reporting_to(_unheard):
            trial = stack.enter_context(row.open(scratch, seed))
        for number in rounds:
            started = time.perf_counter()
            try:
                with reporting_to(_unheard):
                    passed, said = True, trial(number)
            except CriterionMissed as missed:
                passed, said = False, str(missed)
            except Exception as error:  # the matrix is to find out what nobody thought of
                passed, said = False, f"{type(error).__name__}: {error}"
            said = " ".join(said.replace(f"{scratch}/", "").split())  # the same words on any machine
            yield Finished(seed, number, passed, said[:400], round(time.perf_counter() - started, 2))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch: OpenMP's others are not in a fork, which would crash in search of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _unheard(event: Event) -> None:
    """What stages report is about one round's inside."""


def evenly(count: int, *, of: int) -> range:
    """``count`` rounds of ``of``, evenly spaced."""
    return range(0, of, max(1, of // count))
