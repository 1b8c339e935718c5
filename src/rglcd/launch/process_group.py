"""``python -m rglcd.launch.process_group``: torchrun, ending with its ranks' own exit code.

torchrun itself ends with 1 whatever a rank's exit status, and the schedulers above it (Volcano's policies, a retry)
decide by the exit code whether the job is worth running again. Arguments are torchrun's.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import psutil

from rglcd.errors import TryAgain
from rglcd.launch.rank import LAUNCHER
from rglcd.signals import handling_stops


@dataclass(frozen=True)
class RankFailure:
    """The rank that failed first: its number among all, its exit code (128 + signal if one killed it), what it said if anything."""

    rank: int
    exit_code: int
    message: str | None


def run_ranks(arguments: Sequence[str]) -> RankFailure | None:
    """Run the ranks as torchrun's ``arguments`` say; ``None`` when all ended well.

    Raises :class:`TryAgain` when this process was asked to stop: the signal went on to the ranks, which had time to save. If it
    was too short, the last checkpoint is still there to go on from.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    with _stop_requests() as asked:
        os.environ[LAUNCHER] = str(os.getpid())
        try:
            torchrun(["--signals-to-handle", "SIGHUP,SIGQUIT", *arguments])  # the others are ours
        except ChildFailedError as error:
            if asked.is_set():
                raise TryAgain("asked to stop; run the same command to go on") from None
            rank, failure = error.get_first_failure()
            code = failure.exitcode
            said = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
            message = said.get("message") if isinstance(said, dict) else None
            return RankFailure(rank, code if code > 0 else 128 - code, message)
    return None


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set. They are handed on to the ranks, which are killed if they do not end in time.

    Elastic's own handler raises an exception wherever the signal finds it. Where that is a line of its log, Python swallows it;
    where elastic is ending its ranks already, for one of them has failed, the others are never killed.
    """
    asked = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            return
        asked.set()
        ranks = psutil.Process().children()
        if not ranks:
            raise TryAgain("asked to stop before the ranks began; run the same command to go on")
        _each(psutil.Process.terminate, ranks)
        seconds = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))
        too_late = threading.Timer(seconds, _each, (psutil.Process.kill, ranks))
        too_late.daemon = True
        too_late.start()

    with handling_stops(end):
        yield asked


def _each(act: Callable[[psutil.Process], None], ranks: list[psutil.Process]) -> None:
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            act(rank)


def main(arguments: Sequence[str]) -> int:
    """Run the ranks; return 0, or the exit code of the first that failed."""
    try:
        failure = run_ranks(arguments)
    except TryAgain as stopped:
        return stopped.exit_code
    return failure.exit_code if failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
