"""What can go wrong, and the exit code that says so (the same for CLI, DVC, KFP and TorchX).

0 done; 2 bad input, configuration or data (retrying cannot help); 3 training diverged (retrying would repeat it); 69 a machine of a job
is not what it was promised to be (sysexits' EX_UNAVAILABLE); 70 an error that nobody expected, a bug (sysexits' EX_SOFTWARE); 75 try
again: the same command goes on from what is saved (sysexits' EX_TEMPFAIL).
"""

UNAVAILABLE = 69
UNEXPECTED = 70


class InputError(ValueError):
    """The user's input, configuration or data is at fault: one line that says what, where, and what to do."""

    exit_code = 2


class TrainingDiverged(RuntimeError):
    """The loss or the gradient stopped being finite; the last good checkpoint is kept."""

    exit_code = 3


class TrainingHalted(TrainingDiverged):
    """What looks at the training found a reason to end it, as it was configured to; the state is saved."""


class TryAgain(RuntimeError):
    """Not done yet, and nobody's mistake: the same command, run again, goes on from what is saved.

    Raised when the process was asked to stop and has saved its state, when a disk is full, and when a store does not answer.
    """

    exit_code = 75
