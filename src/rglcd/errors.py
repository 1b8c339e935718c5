"""What can go wrong, and the exit code that says so (the same for CLI, DVC, KFP and TorchX).

0 done; 2 bad input, configuration or data (retrying cannot help); 3 training diverged (retrying would repeat it); 69 a machine of a job
is not what it was promised to be (sysexits' EX_UNAVAILABLE); 70 an error that nobody expected, a bug (sysexits' EX_SOFTWARE), or a lack of
memory; 75 try again: the same command goes on from what is saved (sysexits' EX_TEMPFAIL).
"""

from typing import Final, Literal

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


# --- memory --------------------------------------------------------------------------------------

_OUT_OF_MEMORY: Final = ("out of memory", "can't allocate memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")
"""In what torch's allocators, CUDA, cuBLAS and cuDNN say when they get no memory."""

_PERHAPS_OUT_OF_MEMORY: Final = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "unable to find an engine to execute this computation",
)
"""In what they say when they get none, and for other reasons too: a convolution's every algorithm asks for a workspace."""


def lack_of_memory(error: BaseException) -> Literal["certain", "possible"] | None:
    """Whether ``error`` says that memory ran out, a device's or the machine's.

    Read from its words, as others do (accelerate's ``should_reduce_batch_size``): torch's ``OutOfMemoryError`` is that of its caching
    allocator alone, and what CUDA's libraries allocate by themselves ends in a plain ``RuntimeError``.
    """
    if isinstance(error, MemoryError):
        return "certain"
    if not isinstance(error, RuntimeError):
        return None
    said = str(error)
    if any(words in said for words in _OUT_OF_MEMORY):
        return "certain"
    return "possible" if any(words in said for words in _PERHAPS_OUT_OF_MEMORY) else None
