"""A program of another environment as a process that answers: requests and answers are lines of JSON, arrays go through files.

No line is longer than a pipe holds, so a program that has stopped reading is noticed by its silence, not waited for.
"""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from rglcd.errors import InputError

ANSWER_SECONDS: Final = 600.0
"""How long one answer may take: opening 4 GB of weights on a slow disk, or a batch on a CPU, is minutes; more is a hang."""
STOP_SECONDS: Final = 10.0
"""How long the process may take to end when it is asked to, before it is killed."""


@dataclass(frozen=True)
class Words:
    """How errors speak of a process: ``what`` it is, and what to do if it gives no answer, if it ended, and if its command is not there."""

    what: str
    if_silent: str
    if_ended: str
    if_missing: str


class ServerProcess:
    """Starts ``command`` at once, so that an environment that is missing is noticed before any work; it ends with this object.

    ``folder`` is where arrays pass between the two; ``facts`` is the first line that the program said.
    """

    def __init__(self, command: Sequence[str], words: Words, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._words = words
        self.answer_seconds = answer_seconds
        self.folder = Path(tempfile.mkdtemp(prefix="rglcd-scorer-"))
        try:
            self.process = _start(command, words, stderr_path=self.folder / "stderr.txt")
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        weakref.finalize(self, _stop, self.process, self.folder)
        self.facts = self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``request``. Raises :class:`InputError` when none comes in time, or the process has ended."""
        with suppress(BrokenPipeError):  # the answer that does not come says why
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        words = self._words
        try:
            line = _read_line(self.process.stdout.fileno(), seconds=self.answer_seconds)
        except TimeoutError:
            self.process.kill()
            raise InputError(
                f"the {words.what} gave no answer in {self.answer_seconds:g} s and was killed; its last message: {self._last_message()}; "
                f"{words.if_silent}"
            ) from None
        if not line:
            raise InputError(
                f"the {words.what} ended (exit code {self.process.wait()}); its last message: {self._last_message()}; {words.if_ended}"
            )
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise InputError(f"the {words.what} said {line[:100]!r}, which is no JSON object on a line: what it prints goes to stderr")
        return answer

    def _last_message(self) -> str:
        lines = (self.folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "none"


def whole_levels(pixels: Tensor) -> np.ndarray:
    """uint8 (B, H, W, 3) of pixels (B, 3, H, W) in [0, 1], as such programs read pictures."""
    levels = (pixels.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    array: np.ndarray = levels.contiguous().numpy()
    return array


def _read_line(pipe: int, *, seconds: float) -> bytes:
    """One line from ``pipe``, or nothing if its writer has ended. Raises ``TimeoutError`` when neither comes in time."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        part = os.read(pipe, 65536)
        if not part:
            return b""
        line += part
    return line


def _start(command: Sequence[str], words: Words, *, stderr_path: Path) -> "subprocess.Popen[str]":
    found = shutil.which(command[0])
    if found is None:
        raise InputError(words.if_missing)
    with stderr_path.open("w", encoding="utf-8") as file:
        return subprocess.Popen(  # noqa: S603 (a program that the configuration names, no shell)
            [found, *command[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, encoding="utf-8"
        )


def _stop(server: "subprocess.Popen[str]", folder: Path) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    shutil.rmtree(folder, ignore_errors=True)
