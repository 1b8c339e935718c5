"""``python -m rglcd.launch.gang``: torchrun, ending with its ranks' own exit code.

torchrun itself ends with 1 whatever befell a rank, and the schedulers above it (Volcano's policies, a retry)
decide by the exit code whether the job is worth running again. Arguments are torchrun's.
"""

import sys
from collections.abc import Sequence

from rglcd.errors import StateSaved


def main(arguments: Sequence[str]) -> int:
    """Run the ranks; return 0, or the exit code of the first that failed (128 + signal if one killed it)."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(list(arguments))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException:
        # The ranks were told and given time to save. Were it too short, the last checkpoint is still there to go on from.
        return StateSaved.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
