"""Any reward model in a process of its own environment: a program that speaks the protocol below. HPSv3, say, which pins other libraries.

The program is started as ``PROGRAM ARGUMENTS... FOLDER DEVICE`` (FOLDER is ``-`` where the scorer has no source). It says one line, then
answers each line of JSON on its standard input with one on its standard output, and ends when its input does. It prints nothing else there.

    says      {"protocol": 1, "name": "hpsv3", "version": "1.0.0", "logit_scale": 1.0, "range": [null, null]}
    is asked  {"captions": "c.json", "pixels": "p.npy", "scores": "s.npy"}    a JSON list of B strings, uint8 (B, H, W, 3)
    answers   {}                                                              having written float32 (B,) to s.npy
    or        {"error": "one line"}

``logit_scale`` is the inverse temperature of its preferences; null in ``range`` is no bound. No gradient crosses a process: such a reward
labels for the latent proxy and judges.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from rglcd.errors import InputError
from rglcd.models.loading import weights_digest
from rglcd.rewards.server_process import ANSWER_SECONDS, ServerProcess, Words, whole_levels

PROTOCOL: Final = 1
CAPTION_BYTES: Final = 2048
"""A caption's features are its UTF-8 bytes, as many: the program's model may read it together with the picture. What is longer is cut."""


class ProcessReward:
    """A reward model that a program of the user's gives; it starts at once and ends with this object."""

    differentiable: Literal[False] = False
    text_width = CAPTION_BYTES

    def __init__(
        self,
        folder: Path | None,
        *,
        program: str,
        version: str,
        arguments: Sequence[str] = (),
        device: torch.device,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._folder, self._device, self._what = folder, device, f"scoring process {program!r}"
        command = [program, *arguments, "-" if folder is None else str(folder.resolve()), str(device)]
        self._server = ServerProcess(command, _words(program, self._what, device), answer_seconds=answer_seconds)
        facts = self._checked(self._server.facts, version)
        self.name = str(facts["name"])
        self.logit_scale = float(facts["logit_scale"])
        low, high = facts["range"]
        self.range = (-math.inf if low is None else float(low), math.inf if high is None else float(high))

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, has_weights: bool, **settings: Any) -> "ProcessReward":
        """The program on the weights of ``folder``, if it has any; its precision is its own, whatever ``dtype`` is."""
        return cls(folder if has_weights else None, device=device, **settings)

    def weights_sha256(self) -> str | None:
        return None if self._folder is None else weights_digest(self._folder)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """The bytes of each caption (B, 2048), zeros after them."""
        rows = torch.zeros(len(captions), CAPTION_BYTES)
        for row, caption in zip(rows, captions, strict=True):
            data = caption.encode()[:CAPTION_BYTES]
            row[: len(data)] = torch.tensor(list(data))
        return rows.to(self._device)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The program's scores (B,) of pixels (B, 3, H, W) in [0, 1], rounded to whole levels, and caption bytes (B, 2048)."""
        place = self._server.folder
        np.save(place / "pixels.npy", whole_levels(pixels))
        captions = [bytes(row[row > 0].to(torch.uint8).tolist()).decode(errors="ignore") for row in text.cpu()]
        (place / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
        (place / "scores.npy").unlink(missing_ok=True)
        answer = self._server.ask(
            {"captions": str(place / "captions.json"), "pixels": str(place / "pixels.npy"), "scores": str(place / "scores.npy")}
        )
        if "error" in answer:
            raise InputError(f"the {self._what} failed: {' '.join(str(answer['error']).split())[:300]}")
        return self._read_scores(place / "scores.npy", len(pixels))

    def _read_scores(self, path: Path, count: int) -> Tensor:
        try:
            scores = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"the {self._what} answered and wrote no scores: {' '.join(str(error).split())[:200]}") from None
        if scores.shape != (count,) or not np.isfinite(scores).all():
            raise InputError(f"the {self._what} wrote scores of shape {scores.shape}, not {(count,)}, or some that are not finite")
        return torch.from_numpy(scores.astype(np.float32)).to(self._device)

    def _checked(self, facts: Mapping[str, Any], version: str) -> Mapping[str, Any]:
        lacking = [key for key in ("protocol", "name", "version", "logit_scale", "range") if key not in facts]
        if lacking or facts["protocol"] != PROTOCOL:
            raise InputError(f"the {self._what} lacks {', '.join(lacking) or f'protocol {PROTOCOL}'} in its first line (docs/rewards.md)")
        if str(facts["version"]) != version:
            raise InputError(f"the {self._what} is {facts['name']} {facts['version']}, and the configuration says version {version}")
        if not isinstance(facts["range"], list) or len(facts["range"]) != 2:
            raise InputError(f"the {self._what} gives range {facts['range']!r}, not two numbers or nulls")
        for number in (facts["logit_scale"], *(end for end in facts["range"] if end is not None)):
            if not isinstance(number, int | float):
                raise InputError(f"the {self._what} gives {number!r} in logit_scale or range, which is no number")
        return facts


def _words(program: str, what: str, device: torch.device) -> Words:
    return Words(
        what=what,
        if_silent=f"check {program!r} and the device {device}, and run the same command again",
        if_ended=f"mend the environment of {program!r}",
        if_missing=f"process: no command {program!r}; install it, or name another `program`",
    )
