"""Trackers: what else hears the figures of a training, beside the JSON lines, which stay the record.

A tracker is served from a thread, through a queue with a bound: it never slows a run and never ends one. What cannot be reached is said
once and tried again meanwhile; what is refused for good is said once and left.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, repeat
from typing import Any, Final

from rglcd import progress
from rglcd.config import Section
from rglcd.errors import TryAgain
from rglcd.launch.rank import is_first_rank
from rglcd.launch.settings import ClusterSettings
from rglcd.launch.tracker import RefusedError, Row, Tracked, Tracker, UnreachableError
from rglcd.stages.computation import Artifacts
from rglcd.stages.table import Stage
from rglcd.store.manifest import digest_of

_MOST_WAITING: Final = 10_000
"""Rows that wait for a tracker. A training reports about 150: this is many of them."""

_LAST_SECONDS: Final = 5.0
"""How long the end of a stage waits for what a tracker has not taken yet."""

_PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds between two tries; the last is repeated."""


@contextmanager
def tracking(
    settings: ClusterSettings, stage: Stage, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts
) -> Iterator[None]:
    """Within this context, the trackers that ``settings`` name hear what the stage reports; of a process group, what the first rank does.

    Raises :class:`InputError` for credentials that would travel in the clear.
    """
    with ExitStack() as stack:
        for name, tracker in _trackers(settings, _tracked(stage, sections, artifacts)) if is_first_rank() else ():
            stack.enter_context(_listening(name, tracker))
        yield


def _trackers(settings: ClusterSettings, tracked: Tracked) -> Iterator[tuple[str, Tracker]]:
    # Imported when asked for: most processes track nothing.
    if settings.tensorboard is not None:
        from rglcd.launch.tensorboard_tracker import TensorBoardTracker

        yield "TensorBoard", TensorBoardTracker(settings.tensorboard, tracked)
    if settings.mlflow is not None:
        from rglcd.launch.mlflow_tracker import MlflowTracker, access_to

        yield f"MLflow at {settings.mlflow}", MlflowTracker(access_to(settings.mlflow), settings.mlflow_experiment, tracked)


def _tracked(stage: Stage, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> Tracked:
    plain = {name: section.model_dump(mode="json") if isinstance(section, Section) else section for name, section in sections.items()}
    keyed = {name: values for name, values in plain.items() if name in stage.keyed}
    digest = digest_of({"stage": stage.name, "sections": keyed, "artifacts": {name: str(place) for name, place in artifacts.items()}})
    return Tracked(stage.name, digest[:12], _flat(plain))


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(values, Mapping):
        return {prefix: str(values)}
    return {name: text for key, value in values.items() for name, text in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


@contextmanager
def _listening(name: str, tracker: Tracker) -> Iterator[None]:
    served, outcome = _Served(name, tracker), "failed"
    try:
        with progress.reporting_also_to(served.hear):
            yield
        outcome = "finished"
    except TryAgain:
        outcome = "stopped"
        raise
    finally:
        served.end(outcome)


class _Served:
    """A tracker behind its thread, which begins with the first row: a stage that has nothing to do says nothing."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._rows: queue.Queue[Row] = queue.Queue(_MOST_WAITING)
        self._outcome: str | None = None
        self._ending, self._left = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._has_warned = False

    def hear(self, event: progress.Event) -> None:
        """Called by what trains: it only puts a row into the queue."""
        if not event.values:
            return
        try:
            self._rows.put_nowait(Row(event.task, event.done, dict(event.values), time.time()))
        except queue.Full:
            return  # said already: nobody has taken any of ten thousand
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()

    def end(self, outcome: str) -> None:
        """Wait for what has not been taken yet, for a moment."""
        if self._thread is None:
            return
        self._outcome = outcome
        self._ending.set()
        self._thread.join(_LAST_SECONDS)
        self._left.set()
        if self._thread.is_alive():
            self._warn("it has not taken the last figures in time")

    def _serve(self) -> None:
        try:
            while not self._left.is_set() and not (self._ending.is_set() and self._rows.empty()):
                if rows := self._next():
                    self._insist(partial(self._tracker.log, rows))
            self._insist(lambda: self._tracker.end(self._outcome or "failed"))
        except RefusedError as refused:
            self._warn(str(refused))
        except Exception as error:  # whatever it is, it is not the run's trouble
            self._warn(f"{type(error).__name__}: {error}")

    def _next(self) -> list[Row]:
        """The rows that wait, if one comes within a moment."""
        try:
            rows = [self._rows.get(timeout=0.2)]
        except queue.Empty:
            return []
        while len(rows) < 100 and not self._rows.empty():
            rows.append(self._rows.get_nowait())
        return rows

    def _insist(self, give: Callable[[], None]) -> None:
        """Until it is taken; a stage that has ended does not wait long (:meth:`end`)."""
        for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
            try:
                give()
            except UnreachableError as error:
                self._warn(str(error))
                if self._ending.wait(pause) and self._left.wait(_PAUSES[0]):
                    return
            else:
                return

    def _warn(self, why: str) -> None:
        """Once: a run of a week does not fill its log with one server's trouble."""
        if not self._has_warned:
            self._has_warned = True
            said = " ".join(why.split())[:300]
            print(f"rglcd: {self._name}: {said}; the run goes on without it, its figures are in its own files", file=sys.stderr, flush=True)
