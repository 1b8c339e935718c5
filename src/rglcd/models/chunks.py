"""As many samples at once as memory holds: a batch in chunks, halved when the device runs out of memory."""

import sys
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from rglcd.errors import InputError, lack_of_memory


class Sliceable(Sized, Protocol):
    """A list, a range, a tensor: whatever has a length and can be cut."""

    def __getitem__(self, rows: slice, /) -> Any: ...


Samples = TypeVar("Samples", bound=Sliceable)
Result = TypeVar("Result")


@dataclass
class Chunks:
    """``size`` samples at once, the value of ``setting``; ``num_halvings`` is how often it may be halved, None: down to one sample."""

    setting: str
    size: int
    num_halvings: int | None = None

    def calls(self, run: Callable[[Samples], Result], samples: Samples) -> Iterator[Result]:
        """``run``'s results for ``samples``, cut into chunks, in order.

        A chunk that does not fit in memory is halved, with a message, and so are all after it, of later calls too.
        Raises :class:`InputError`, naming the setting, when it may not be halved any more; an error that may have had another cause is
        then raised as it is.
        """
        done = 0
        while done < len(samples):
            chunk: Samples = samples[done : done + self.size]
            results = _what_fits(run, chunk, may_be_halved=self._may_halve(len(chunk)))
            if results:
                done += len(chunk)
            else:
                self._halve(len(chunk))
            yield from results

    def joined(self, run: Callable[[Samples], Tensor], samples: Samples) -> Tensor:
        """:meth:`calls` as one tensor, along its first dimension."""
        results = list(self.calls(run, samples))
        return results[0] if len(results) == 1 else torch.cat(results)

    def _may_halve(self, num_samples: int) -> bool:
        return self.num_halvings != 0 and num_samples > 1

    def _halve(self, num_samples: int) -> None:
        if not self._may_halve(num_samples):
            at_once = f"{num_samples} samples at once do" if num_samples > 1 else "even one sample does"
            remedy = "lower it" if num_samples > 1 else "take a device with more, or a lower precision"
            raise InputError(f"{self.setting}: {at_once} not fit in memory; {remedy}")
        print(f"rglcd: {num_samples} samples at once do not fit in memory; going on with {num_samples // 2}", file=sys.stderr)
        self.size, self.num_halvings = num_samples // 2, None if self.num_halvings is None else self.num_halvings - 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _what_fits(run: Callable[[Samples], Result], chunk: Samples, *, may_be_halved: bool) -> list[Result]:
    """The result, or none if it did not fit: when this returns, the tensors that did not are gone with the exception's frames."""
    try:
        return [run(chunk)]
    except (RuntimeError, MemoryError) as error:
        lack = lack_of_memory(error)
        if lack is None or (lack == "possible" and not may_be_halved):
            raise
        return []
