"""The ``hpsv2`` package as a reward, in a process of its own: its pins (protobuf < 4, an old pytest) fight this project's.

No gradient crosses a process, so it can label and judge, and not guide directly: for that there is the kind ``hpsv2``.
"""

import json
import shutil
import subprocess
import tempfile
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


class Hpsv2ProcessReward:
    """Starts the server at once, so that an environment that is missing is noticed before any work; it ends with this object."""

    differentiable: Literal[False] = False
    range = (-1.0, 1.0)

    def __init__(self, folder: Path, *, interpreter: str, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._desk = Path(tempfile.mkdtemp(prefix="rglcd-hpsv2-"))
        self._server = _start(interpreter, folder, device, complaints=self._desk / "stderr.txt")
        weakref.finalize(self, _stop, self._server, self._desk)
        facts = self._answer()
        self.logit_scale = float(facts["logit_scale"])
        self.text_width = int(facts["text_width"])

    def weights_sha256(self) -> str:
        return weights_digest(self._folder)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        self._ask({"captions": list(captions), "text": str(self._desk / "text.npy")})
        return torch.from_numpy(np.load(self._desk / "text.npy")).to(self._device)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Cosines (B,) of pixels (B, 3, H, W) in [0, 1], rounded to whole levels as PIL images have them, and text (B, D)."""
        levels = (pixels.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
        np.save(self._desk / "pixels.npy", levels.contiguous().numpy())
        np.save(self._desk / "text.npy", text.detach().float().cpu().numpy())
        self._ask({name: str(self._desk / f"{name}.npy") for name in ("pixels", "text", "scores")})
        return torch.from_numpy(np.load(self._desk / "scores.npy")).to(self._device)

    def _ask(self, request: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the answer that does not come says why
            print(json.dumps(request), file=self._server.stdin, flush=True)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            complaints = (self._desk / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = complaints[-1] if complaints else "nothing"
            raise InputError(f"the hpsv2 process ended (exit code {self._server.wait()}); the last it said: {last[:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _start(interpreter: str, folder: Path, device: torch.device, *, complaints: Path) -> "subprocess.Popen[str]":
    found = shutil.which(interpreter)
    if found is None:
        raise InputError(
            f"hpsv2-process: no command {interpreter!r}; make an environment from images/hpsv2/requirements-hpsv2.txt and name its "
            "Python as `interpreter`, or use kind hpsv2, which needs none"
        )
    # Isolated (-I), so that neither this project's PYTHONPATH nor the current folder is seen there.
    command = [found, "-I", str(SERVER), str(folder.resolve()), str(device)]
    with complaints.open("w", encoding="utf-8") as file:
        return subprocess.Popen(  # noqa: S603 (an interpreter that the configuration names, our own script, no shell)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, encoding="utf-8"
        )


def _stop(server: "subprocess.Popen[str]", desk: Path) -> None:
    server.terminate()
    server.wait()
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            pipe.close()
    shutil.rmtree(desk, ignore_errors=True)
