"""What a training step reads: rows of the cache and their draws, gathered on the CPU while the step before is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rglcd.latents.cache import LatentCache
from rglcd.latents.format import StoredBatch
from rglcd.latents.order import sample_indices

Item = TypeVar("Item")
Drawn = TypeVar("Drawn")
DrawnFor = TypeVar("DrawnFor", covariant=True)


class Draw(Protocol[DrawnFor]):
    """One of the functions of :mod:`rglcd.training.draws`."""

    def __call__(self, seed: int, step: int, /, *, batch_size: int, rows: slice, latent_shape: tuple[int, int, int]) -> DrawnFor: ...


@dataclass(frozen=True)
class Reader(Generic[Drawn]):
    """A process's ``rows`` of each global batch: as they lie in the cache, and what is drawn for them. A pure function of the step.

    Batches go through the first ``num_samples`` of the cache, in the order that ``seed`` gives.
    """

    cache: LatentCache
    num_samples: int
    seed: int
    batch_size: int
    rows: slice
    draw: Draw[Drawn]

    def __call__(self, step: int) -> tuple[StoredBatch, Drawn]:
        indices = sample_indices(self.seed, self.num_samples, start=step * self.batch_size, count=self.batch_size)
        stored = self.cache.stored(indices[self.rows])
        return stored, self.draw(self.seed, step, batch_size=self.batch_size, rows=self.rows, latent_shape=self.cache.latent_shape)


class ReadAhead(Generic[Item]):
    """``read(step)`` for one step after another: while the caller works on one, a thread reads the next.

    The order of shuffled samples is a random walk through files that may lie on a slow volume. A thread lives for one read, and none is
    begun past ``num_steps``: so there is nothing to close. What ``read`` raises is raised for the step that it was read for.
    """

    def __init__(self, read: Callable[[int], Item], *, num_steps: int) -> None:
        self._read = read
        self._num_steps = num_steps
        self._ahead: tuple[int, Future[Item]] | None = None

    def __call__(self, step: int) -> Item:
        ahead, self._ahead = self._ahead, None
        item = self._read(step) if ahead is None or ahead[0] != step else ahead[1].result()
        if step + 1 < self._num_steps:
            self._ahead = step + 1, self._begin(step + 1)
        return item

    def _begin(self, step: int) -> Future[Item]:
        thread = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        future = thread.submit(self._read, step)
        thread.shutdown(wait=False)  # it ends with this read
        return future
