"""A stage's memory on one GPU: parts that last, and moments whose parts come on top of them."""

from collections.abc import Callable
from dataclasses import dataclass

from rglcd.planning.costs import Line

TO_SPARE = 0.08
"""Of a card's memory, for what is not counted: CUDA's and NCCL's own, workspaces of kernels, gaps between the allocator's blocks."""


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    name: str
    line: Line


@dataclass(frozen=True)
class Moment:
    """When a stage takes much memory: what there is then besides what lasts; ``between_steps`` it is not in the middle of a batch."""

    name: str
    parts: tuple[Part, ...]
    between_steps: bool = False


@dataclass(frozen=True)
class StageMemory:
    """What one stage takes of a GPU at ``samples`` samples at once, the number that ``setting`` sets.

    ``whole`` is the most that it can be given at once: ``split`` are parts that last only if that is done in pieces, and
    ``unsplit`` moments that come only if it is not.
    """

    stage: str
    samples: int
    setting: str
    lasting: tuple[Part, ...]
    moments: tuple[Moment, ...]
    whole: int
    split: tuple[Part, ...] = ()
    unsplit: tuple[Moment, ...] = ()
    notes: tuple[str, ...] = ()

    def fullest(self, samples: int) -> Moment:
        """The moment that takes the most."""
        moments = self.moments if samples < self.whole else self.moments + self.unsplit
        return max(moments, key=lambda moment: sum(part.line.at(samples) for part in self._at(moment, samples)))

    def parts(self, samples: int) -> tuple[Part, ...]:
        """All that is there at the fullest moment."""
        return self._at(self.fullest(samples), samples)

    def _at(self, moment: Moment, samples: int) -> tuple[Part, ...]:
        added_up = self.split if samples < self.whole and not moment.between_steps else ()
        return (*self.lasting, *added_up, *moment.parts)

    def bytes_at(self, samples: int) -> float:
        """The most that the stage takes."""
        return sum(part.line.at(samples) for part in self.parts(samples))


def largest(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest number of samples, up to ``most``, that ``fits``; 0 if not even one does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
