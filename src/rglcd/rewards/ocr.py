"""Text in pictures, read by ``rapidocr`` (PP-OCR on onnxruntime): a reward without gradient, and an alarm for words nobody asked for.

The package holds its models; they are named to it by file, so that it fetches nothing. Pictures are read on the CPU, one by one, with as
many threads as torch has: what is read in one does not depend on its batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from rglcd.errors import InputError
from rglcd.extras import install_command
from rglcd.rewards.installed_code import READER, READERS_EXTRA, code_of_reader, in_words, reader_folder
from rglcd.rewards.quoted_text import has_unasked_text, plain, quoted_texts, reading_score
from rglcd.rewards.server_process import whole_levels
from rglcd.store.manifest import digest_of, sha256_of

_DETECTION, _RECOGNITION = "models/PP-OCRv6_det_small.onnx", "models/PP-OCRv6_rec_small.onnx"

QUOTED_BYTES: Final = 256
"""A caption's features: what it quotes in UTF-8, each text ended by a byte 1. What is longer is cut."""

_END: Final = "\x01"

LEAST_CONFIDENCE: Final = 0.5
"""Of a line that counts as read: rapidocr's own ``text_score``."""

ALARM_CONFIDENCE: Final = 0.8
"""Of a line that counts as text which nobody asked for: less is given to tiles of a roof (AAAA) and to rain (111)."""


@dataclass(frozen=True)
class Line:
    """A line that was read, as :func:`plain` has it, and how sure the reader is, 0 to 1."""

    text: str
    confidence: float


class OcrReward:
    """The share of the characters that a caption quotes which can be read in the picture (:func:`rglcd.rewards.quoted_text.reading_score`).

    A caption that quotes nothing has no score: what ``score`` gives for it is 0.
    """

    differentiable: Literal[False] = False
    range = (0.0, 1.0)
    text_width = QUOTED_BYTES

    def __init__(self, *, logit_scale: float, device: torch.device, num_threads: int) -> None:
        self.logit_scale = logit_scale
        self._device = device
        self._reader = _open_reader(num_threads)

    @classmethod
    def load(
        cls, folder: Path, *, dtype: torch.dtype, device: torch.device, logit_scale: float, code: Mapping[str, str] | None = None
    ) -> "OcrReward":
        """The installed package, which must be ``code``, where that is given; its precision is its own, whatever ``dtype`` is.

        Raises :class:`InputError` where it is not installed, lacks its models, or is another than ``prepare`` found.
        """
        if code is not None and (found := code_of_reader()) != code:
            raise InputError(f"kind ocr reads with {in_words(found)}, and {in_words(code)} was prepared; run: rglcd run prepare")
        return cls(logit_scale=logit_scale, device=device, num_threads=torch.get_num_threads())

    def weights_sha256(self) -> str:
        return digest_of({name: sha256_of(_model(name)) for name in (_DETECTION, _RECOGNITION)})

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """What each caption quotes: its bytes (B, 256), zeros after them; zeros alone where it quotes nothing."""
        rows = torch.zeros(len(captions), QUOTED_BYTES)
        for row, caption in zip(rows, captions, strict=True):
            data = "".join(text + _END for text in quoted_texts(caption)).encode()[:QUOTED_BYTES]
            row[: len(data)] = torch.tensor(list(data))
        return rows.to(self._device)

    def has_score(self, text: Tensor) -> Tensor:
        """Bool (B,): where the caption, of features (B, 256), quotes something."""
        return text[:, 0] > 0

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The share (B,) that is read in pixels (B, 3, H, W) in [0, 1] of what captions of features (B, 256) quote; 0 where nothing."""
        return self.score_and_unasked_text(pixels, text)[0]

    def score_and_unasked_text(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The scores (B,), and 1 for each picture (B,) that holds text which its caption does not quote, else 0."""
        pairs = list(zip(self.read(pixels), map(_quoted, text.cpu()), strict=True))
        scores = [reading_score([line.text for line in lines], texts) if texts else 0.0 for lines, texts in pairs]
        unasked = [float(has_unasked_text(_certain(lines), texts)) for lines, texts in pairs]
        return torch.tensor(scores, device=pixels.device), torch.tensor(unasked, device=pixels.device)

    def read(self, pixels: Tensor) -> list[list[Line]]:
        """What can be read in each of the pixels (B, 3, H, W) in [0, 1], rounded to whole levels: from top to bottom, left to right."""
        # As OpenCV has colours: blue first.
        return [self._read(picture[:, :, ::-1].copy()) for picture in whole_levels(pixels)]

    def _read(self, picture: Any) -> list[Line]:
        found = self._reader(picture)
        return [Line(plain(text), float(confidence)) for text, confidence in zip(found.txts or (), found.scores or (), strict=True)]


def _certain(lines: Sequence[Line]) -> list[str]:
    return [line.text for line in lines if line.confidence >= ALARM_CONFIDENCE]


def _quoted(row: Tensor) -> list[str]:
    text = bytes(row[row > 0].to(torch.uint8).tolist()).decode(errors="ignore")
    return [each for each in text.split(_END) if each]


def _model(name: str) -> Path:
    path = reader_folder() / name
    if not path.is_file():
        raise InputError(f"kind ocr: the installed {READER} holds no {name}; install the version of requirements.lock")
    return path


def _open_reader(num_threads: int) -> Any:
    detection, recognition = _model(_DETECTION), _model(_RECOGNITION)
    try:
        import cv2
        import onnxruntime  # noqa: F401  (rapidocr does without until it reads)
        from rapidocr import RapidOCR
    except ImportError as error:
        raise InputError(f"kind ocr: {error}: {install_command(READERS_EXTRA)}") from None
    cv2.setNumThreads(num_threads)  # OpenCV's is one for the process
    return RapidOCR(
        params={
            "Global.log_level": "error",  # it warns of each picture without text
            "Global.text_score": LEAST_CONFIDENCE,
            "Global.use_cls": False,  # text upside down is read by nobody
            "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.model_path": str(detection),
            "Rec.model_path": str(recognition),
        }
    )
