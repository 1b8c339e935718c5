"""``python -m rglcd.launch.gang``: torchrun, ending with its ranks' own exit code.

torchrun itself ends with 1 whatever befell a rank, and the schedulers above it (Volcano's policies, a retry)
decide by the exit code whether the job is worth running again. Arguments are torchrun's.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rglcd.errors import StateSaved


@dataclass(frozen=True)
class RankFailure:
    """The rank that failed first: its number among all, its exit code (128 + signal if one killed it), what it said if anything."""

    rank: int
    exit_code: int
    message: str | None


def run_ranks(arguments: Sequence[str]) -> RankFailure | None:
    """Run the ranks as torchrun's ``arguments`` say; ``None`` when all ended well.

    Raises :class:`StateSaved` when this process was told to stop: the ranks were told too, and given time to save. Were it
    too short, the last checkpoint is still there to go on from.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(list(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        said = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
        message = said.get("message") if isinstance(said, dict) else None
        return RankFailure(rank, code if code > 0 else 128 - code, message)
    except SignalException as signalled:
        raise StateSaved(f"told to stop by signal {signalled.sigval}; run the same command to go on") from None
    return None


def main(arguments: Sequence[str]) -> int:
    """Run the ranks; return 0, or the exit code of the first that failed."""
    try:
        failure = run_ranks(arguments)
    except StateSaved as stopped:
        return stopped.exit_code
    return failure.exit_code if failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
