"""How a failure crosses a process boundary: an exit code, and one line in the error file.

The file is torch elastic's own (``TORCHELASTIC_ERROR_FILE``): torchrun collects it from its ranks, TorchX
reads it back from a job, and on Kubernetes it is the container's termination message. One convention serves all.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from rglcd.errors import InputError, TrainingDiverged, TryAgain


class JobError(RuntimeError):
    """A job ended with an exit code that stands for no exception of rglcd (a crash, a kill, out of memory)."""

    def __init__(self, message: str, *, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


KNOWN = (InputError, TrainingDiverged, TryAgain)
"""Errors shown as their one line, without a traceback."""

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable that names the file which receives the reason of a failure."""

LINE = "rglcd: {message}"
"""How a process says its failure on stderr."""


@dataclass(frozen=True)
class Failure:
    """What the process that failed said of it; of a process group, which rank it was and the last lines of its log."""

    message: str
    exit_code: int
    rank: int | None = None
    last_lines: tuple[str, ...] = ()


def write_failure(path: Path, failure: Failure) -> None:
    """Write ``failure`` in torch elastic's format."""
    more = {"timestamp": str(int(time.time())), "py_callstack": "\n".join(failure.last_lines)}
    content = {"message": failure.message, "errorCode": failure.exit_code, "rank": failure.rank, "extraInfo": more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"message": content}), encoding="utf-8")


def says_failure(line: str) -> bool:
    """Whether ``line`` of a log is a process saying its failure, which the error file holds too."""
    return line.startswith(LINE.format(message=""))


def read_failure(text: str) -> Failure | None:
    """The failure in an error file's ``text``; ``None`` if a process other than ours wrote it or it holds no code."""
    try:
        content = json.loads(text)["message"]
        lines = content.get("extraInfo", {}).get("py_callstack") or ""
        return Failure(str(content["message"]), int(content["errorCode"]), content.get("rank"), tuple(lines.splitlines()))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def exception_of(failure: Failure) -> Exception:
    """The exception that ends this process as ``failure`` ended the other one."""
    for kind in KNOWN:
        if kind.exit_code == failure.exit_code:
            return kind(failure.message)
    return JobError(failure.message, exit_code=failure.exit_code)
