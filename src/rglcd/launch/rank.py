"""What a rank of a process group does beside its work: it ends with the process that started it, and does what the first rank does.

torchrun gives each rank a session of its own, so what kills torchrun alone (the kernel for want of memory, ``kill -9``) leaves its
ranks running: on their GPUs, and in the way of the run that comes after. And only the first rank waits for another run that makes the
same result, so it alone knows whether any work is left.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from rglcd.signals import end_with_parent

LAUNCHER: Final = "RGLCD_LAUNCHER"
"""Process id of what starts the ranks, in their environment."""

_PATIENCE: Final = timedelta(days=7)
"""For another run of the same stage, which may be the whole of a training."""


def is_first_rank() -> bool:
    """Whether this process publishes what its group makes; true of a process alone."""
    return os.environ.get("RANK", "0") == "0"


def end_with_launcher() -> None:
    """From now on, kill this process soon after the one that started its group has gone. Nothing happens in a process alone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or "LOCAL_RANK" not in os.environ:
        return

    end_with_parent(int(launcher))


def telling_the_others() -> Callable[[bool], None]:
    """For the first rank: what tells the others whether there is work. In a process alone it does nothing."""
    if not _has_peers():
        return lambda _: None
    store = _store()
    return lambda begins: store.set("begins", str(int(begins)))


def first_rank_works() -> bool:
    """For the others: whether the first rank found work to do. They wait for its answer as long as it waits for other runs."""
    store = _store()
    store.wait(["begins"], _PATIENCE)
    return bool(int(store.get("begins")))


def _has_peers() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _store() -> Any:  # torch's, which a process alone does not import
    """The ranks' shared store, under a prefix of its own: the stage makes its process group on it afterwards."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("rglcd", store)
