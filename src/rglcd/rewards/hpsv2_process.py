"""The ``hpsv2`` package as a reward, in a process of its own: its pins (protobuf < 4, an old pytest) conflict with this project's.

No gradient crosses a process, so it can label and judge, and not guide directly: for that there is the kind ``hpsv2``.
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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rglcd.errors import InputError
from rglcd.models.loading import weights_digest

SERVER = Path(__file__).with_name("hpsv2_server.py")
ANSWER_SECONDS = 600.0
"""How long one answer may take: opening 4 GB of weights on a slow disk, or a batch on a CPU, is minutes; more is a hang."""
STOP_SECONDS = 10.0
"""How long the process may take to end when it is asked to, before it is killed."""


class Hpsv2ProcessReward:
    """Starts the server at once, so that an environment that is missing is noticed before any work; it ends with this object."""

    differentiable: Literal[False] = False
    range = (-1.0, 1.0)

    def __init__(self, folder: Path, *, interpreter: str, device: torch.device, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._folder = folder
        self._device = device
        self._interpreter = interpreter
        self._answer_seconds = answer_seconds
        self._tmpdir = Path(tempfile.mkdtemp(prefix="rglcd-hpsv2-"))
        self._server = _start(interpreter, folder, device, stderr_path=self._tmpdir / "stderr.txt")
        weakref.finalize(self, _stop, self._server, self._tmpdir)
        facts = self._answer()
        self.logit_scale = float(facts["logit_scale"])
        self.text_width = int(facts["text_width"])

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, interpreter: str) -> "Hpsv2ProcessReward":
        """The package on the weights of ``folder``; its precision is its own, whatever ``dtype`` is."""
        return cls(folder, interpreter=interpreter, device=device)

    def weights_sha256(self) -> str:
        return weights_digest(self._folder)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        # Through a file, as the arrays are: a line longer than a pipe holds would wait for a server that has stopped reading.
        (self._tmpdir / "captions.json").write_text(json.dumps(list(captions)), encoding="utf-8")
        self._ask({"captions": str(self._tmpdir / "captions.json"), "text": str(self._tmpdir / "text.npy")})
        return torch.from_numpy(np.load(self._tmpdir / "text.npy")).to(self._device)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Cosines (B,) of pixels (B, 3, H, W) in [0, 1], rounded to whole levels as PIL images have them, and text (B, D)."""
        levels = (pixels.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
        np.save(self._tmpdir / "pixels.npy", levels.contiguous().numpy())
        np.save(self._tmpdir / "text.npy", text.detach().float().cpu().numpy())
        self._ask({name: str(self._tmpdir / f"{name}.npy") for name in ("pixels", "text", "scores")})
        return torch.from_numpy(np.load(self._tmpdir / "scores.npy")).to(self._device)

    def _ask(self, request: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the answer that does not come says why
            print(json.dumps(request), file=self._server.stdin, flush=True)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        try:
            line = _read_line(self._server.stdout.fileno(), seconds=self._answer_seconds)
        except TimeoutError:
            self._server.kill()
            raise InputError(
                f"the hpsv2 process gave no answer in {self._answer_seconds:g} s and was killed; its last message: {self._last_message()}; "
                f"check {self._interpreter!r} and the device {self._device}, run the same command again, or use kind hpsv2, "
                "which needs no process"
            ) from None
        if not line:
            raise InputError(
                f"the hpsv2 process ended (exit code {self._server.wait()}); its last message: {self._last_message()}; "
                f"mend the environment of {self._interpreter!r} (images/hpsv2), or use kind hpsv2, which needs none"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_message(self) -> str:
        lines = (self._tmpdir / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "none"


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


def _start(interpreter: str, folder: Path, device: torch.device, *, stderr_path: Path) -> "subprocess.Popen[str]":
    found = shutil.which(interpreter)
    if found is None:
        raise InputError(
            f"hpsv2-process: no command {interpreter!r}; make an environment from images/hpsv2/requirements-hpsv2.txt and name its "
            "Python as `interpreter`, or use kind hpsv2, which needs none"
        )
    # Isolated (-I), so that neither this project's PYTHONPATH nor the current folder is seen there.
    command = [found, "-I", str(SERVER), str(folder.resolve()), str(device)]
    with stderr_path.open("w", encoding="utf-8") as file:
        return subprocess.Popen(  # noqa: S603 (an interpreter that the configuration names, our own script, no shell)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, encoding="utf-8"
        )


def _stop(server: "subprocess.Popen[str]", tmpdir: Path) -> None:
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
    shutil.rmtree(tmpdir, ignore_errors=True)
