"""The only module that knows torch.distributed: which rank this is, and what ranks do together.

A run is defined by its global batch. Ranks take their slice of the batch *and of its random draws*
(which are a function of seed and step), so the world size changes the speed and not the run.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rglcd.errors import InputError

Part = TypeVar("Part")


@dataclass(frozen=True)
class World:
    """Which of how many ranks this process is, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This rank's rows of a global batch; :class:`InputError` when the ranks cannot share it evenly."""
        if batch_size % self.size:
            raise InputError(f"batch size {batch_size} is not a multiple of the {self.size} processes that share it")
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` on this rank's device; to a GPU by an asynchronous copy, which needs pinned memory."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def wrap(self, module: nn.Module, *, bucket_mib: int | None = None, averaged_in: torch.dtype | None = None) -> nn.Module:
        """``module`` with gradients averaged over the ranks in each backward pass, so many MiB at a time.

        They travel and are added up in their own precision, or ``averaged_in`` bfloat16, which is half the bytes.
        """
        if self.size == 1:
            return module
        wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, bucket_cap_mb=bucket_mib)
        if averaged_in == torch.bfloat16:
            wrapped.register_comm_hook(self.size, _average_in_bfloat16)
        return wrapped

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The ranks' mean of a small tensor."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The ranks' equally many ``rows``, one after the other: the global batch.

        Its gradient is that of a loss which every rank computes alike, summed over the ranks: nothing is sent back.
        """
        if self.size == 1:
            return rows
        gathered: torch.Tensor = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]  # torch gives it no types
        return gathered

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        if self.size == 1:
            return flag
        # On the CPU, so that asking does not wait for the device to finish its step.
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def _average_in_bfloat16(num_ranks: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]  # torch gives it no type
    """DDP's hook for a bucket of gradients. Torch's own of this kind is refused where there is no GPU."""
    whole = bucket.buffer()
    halved = whole.to(torch.bfloat16).div_(num_ranks)
    sent = dist.all_reduce(halved, async_op=True)
    assert sent is not None
    averaged: torch.futures.Future[torch.Tensor] = sent.get_future().then(lambda _: whole.copy_(halved))
    return averaged


def accumulated(network: nn.Module, parts: Sequence[Part]) -> Iterator[Part]:
    """The parts of a batch in turn, whose gradients add up; over the ranks they are averaged once, in the last part's backward pass.

    Both passes of a part belong into the loop's body: a wrapper decides in the forward pass what the backward pass will do.
    """
    *first, last = parts
    for part in first:
        if isinstance(network, DistributedDataParallel):
            with network.no_sync():
                yield part
        else:
            yield part
    yield last


def micro_batches(num_rows: int, size: int | None) -> list[slice]:
    """Consecutive rows of a batch, ``size`` at a time, the last perhaps fewer; None: all at once."""
    step = num_rows if size is None else size
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


gather_into: Final = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""(the ranks' rows, a rank's own): torch's, whose name is another from 2.13 on; the older one then warns in each run."""


class _Gather(torch.autograd.Function):
    """Concatenation over the ranks. Where all compute the same loss, the sum of their gradients at a row is ``size`` times one's own."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world = world
        gathered = rows.new_empty(world.size * len(rows), *rows.shape[1:])
        gather_into(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        world: World = ctx.world
        (gradient,) = gradients
        return world.size * gradient[world.rows(len(gradient))], None


_LEFT: list[dist.ProcessGroup | None] = []
"""Groups this process left, referred to so that they live on. A DDP module outlives its group: if its destructor destroyed gloo's
group, it would hold the interpreter's lock and wait for gloo's worker thread, which may itself need that lock: a deadlock."""


COLLECTIVE_TIMEOUT: Final = timedelta(minutes=30)
"""How long a collective operation waits for a rank that does not come, unless told otherwise. Torch's own is 10 minutes for NCCL."""

UNEQUAL_WORK_TIMEOUT: Final = timedelta(days=1)
"""The same, after work that takes one rank longer than another."""

_TIMEOUT: ContextVar[timedelta] = ContextVar("collective timeout", default=COLLECTIVE_TIMEOUT)


@contextmanager
def waiting_at_most(seconds: int) -> Iterator[None]:
    """Within this context, a collective operation fails after ``seconds``: one frozen rank must not hold the others for ever."""
    token = _TIMEOUT.set(timedelta(seconds=seconds))
    try:
        yield
    finally:
        _TIMEOUT.reset(token)


def collective_timeout() -> timedelta:
    """How long a collective operation waits in this context."""
    return _TIMEOUT.get()


@contextmanager
def unequal_work(world: World, *, at_most: timedelta = UNEQUAL_WORK_TIMEOUT) -> Iterator[None]:
    """Within this context ranks do work of their own, as long as each takes; at its end all wait for the slowest, ``at_most`` so long.

    The others' patience is on the CPU, in a group of its own: a barrier in the group of all would fail after :func:`collective_timeout`,
    and with NCCL keep every GPU busy. A rank that fails ends the others as it always does: whoever started them kills them. A
    ``RuntimeError`` names the ranks that did not come.
    """
    if world.size == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=at_most)
    _LEFT.append(group)
    yield
    dist.monitored_barrier(group, timeout=at_most, wait_all_ranks=True)


@contextmanager
def join_world() -> Iterator[World]:
    """The world that torchrun made, or a world of one. Each rank takes the GPU of its local number, if there are any."""
    on_gpu = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        yield World(0, 1, torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"))
        return
    device = torch.device("cpu")
    if on_gpu:
        # First of all: whatever asks for "the" GPU before would open a context on the first one, for every rank.
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=collective_timeout())
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        _LEFT.append(dist.group.WORLD)
        dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process among those of its node, which torchrun started: that of its GPU. 0 for a process alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))
