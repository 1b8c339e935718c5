"""The ``hpsv2`` package as a reward, in a process of its own: its pins (protobuf < 4, an old pytest) conflict with this project's.

No gradient crosses a process, so it can label and judge, and not guide directly: for that there is the kind ``hpsv2``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rglcd.models.loading import weights_digest
from rglcd.rewards.server_process import ANSWER_SECONDS, ServerProcess, Words, whole_levels

SERVER = Path(__file__).with_name("hpsv2_server.py")


class Hpsv2ProcessReward:
    """Starts the server at once, so that an environment that is missing is noticed before any work; it ends with this object."""

    differentiable: Literal[False] = False
    range = (-1.0, 1.0)

    def __init__(self, folder: Path, *, interpreter: str, device: torch.device, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._folder = folder
        self._device = device
        # Isolated (-I), so that neither this project's PYTHONPATH nor the current folder is seen there.
        command = [interpreter, "-I", str(SERVER), str(folder.resolve()), str(device)]
        self._server = ServerProcess(command, _words(interpreter, device), answer_seconds=answer_seconds)
        self.logit_scale = float(self._server.facts["logit_scale"])
        self.text_width = int(self._server.facts["text_width"])

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, interpreter: str) -> "Hpsv2ProcessReward":
        """The package on the weights of ``folder``; its precision is its own, whatever ``dtype`` is."""
        return cls(folder, interpreter=interpreter, device=device)

    def weights_sha256(self) -> str:
        return weights_digest(self._folder)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        # Through a file, as the arrays are: a line longer than a pipe holds would wait for a server that has stopped reading.
        place = self._server.folder
        (place / "captions.json").write_text(json.dumps(list(captions)), encoding="utf-8")
        self._server.ask({"captions": str(place / "captions.json"), "text": str(place / "text.npy")})
        return torch.from_numpy(np.load(place / "text.npy")).to(self._device)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Cosines (B,) of pixels (B, 3, H, W) in [0, 1], rounded to whole levels as PIL images have them, and text (B, D)."""
        place = self._server.folder
        np.save(place / "pixels.npy", whole_levels(pixels))
        np.save(place / "text.npy", text.detach().float().cpu().numpy())
        self._server.ask({name: str(place / f"{name}.npy") for name in ("pixels", "text", "scores")})
        return torch.from_numpy(np.load(place / "scores.npy")).to(self._device)


def _words(interpreter: str, device: torch.device) -> Words:
    return Words(
        what="hpsv2 process",
        if_silent=(f"check {interpreter!r} and the device {device}, run the same command again, or use kind hpsv2, which needs no process"),
        if_ended=f"mend the environment of {interpreter!r} (images/hpsv2), or use kind hpsv2, which needs none",
        if_missing=(
            f"hpsv2-process: no command {interpreter!r}; make an environment from images/hpsv2/requirements-hpsv2.txt and name its "
            "Python as `interpreter`, or use kind hpsv2, which needs none"
        ),
    )
