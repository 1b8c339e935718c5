"""The toy's held-out scorer (the judge): the probability that a picture shows its caption. No student is trained on it.

A convolutional network, unlike the expert in every respect: its text is a bag of words of its own vocabulary that
modulates the picture's features (FiLM, Perez et al. 2018) before one logit. How it is trained: `scorers`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from rglcd.errors import InputError

WORDS_FILE: Final = "vocabulary.json"
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
MAX_WORDS: Final = 16


@dataclass(frozen=True)
class JudgeShape:
    """The network's sizes, as saved in its config.json."""

    width: int = 32
    text_width: int = 32
    groups: int = 8


class ToyJudge(nn.Module):
    """Pictures and captions to the probability that they belong together.

    Words outside the vocabulary count as one unknown word.
    """

    differentiable: Literal[True] = True
    range: tuple[float, float] = (0.0, 1.0)
    logit_scale: float = 5.0
    text_width: int = MAX_WORDS

    def __init__(self, words: Sequence[str], shape: JudgeShape) -> None:
        super().__init__()
        self.words, self.shape = tuple(words), shape
        self._numbers = {word: number for number, word in enumerate(self.words, start=2)}
        wide = 2 * shape.width
        self.embedding = nn.EmbeddingBag(len(self.words) + 2, shape.text_width, mode="sum", padding_idx=0)
        self.text = nn.Sequential(nn.LayerNorm(shape.text_width), nn.Linear(shape.text_width, wide), nn.SiLU())
        self.stem = nn.Conv2d(3 + 2, shape.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            [
                _ResidualBlock(shape.width, shape.width, wide, stride=1, groups=shape.groups),
                _ResidualBlock(shape.width, wide, wide, stride=2, groups=shape.groups),
                _ResidualBlock(wide, wide, wide, stride=2, groups=shape.groups),
            ]
        )
        self.head = nn.Sequential(nn.Linear(2 * wide, wide), nn.SiLU(), nn.Linear(wide, 1))

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Word numbers, 0 where a caption has ended: int64 (B, 16)."""
        rows = torch.zeros(len(captions), MAX_WORDS, dtype=torch.int64)
        for row, text in zip(rows, captions, strict=True):
            numbers = [self._numbers.get(word, 1) for word in re.findall(r"\w+", text.lower())][:MAX_WORDS]
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return rows.to(self.embedding.weight.device)

    def forward(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The match logit (B,) of `pixels` (B, 3, 32, 32) in [0, 1] and word numbers (B, 16)."""
        pixels = pixels.to(self.stem.weight.dtype)
        condition = self.text(self.embedding(text.long()))
        # Convolutions have no positions: two channels of coordinates give them (CoordConv, Liu et al. 2018).
        line = torch.linspace(-1, 1, pixels.shape[-1]).to(pixels)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(pixels), -1, -1, -1)
        features = self.stem(torch.cat([pixels * 2 - 1, places], dim=1))
        for block in self.blocks:
            features = block(features, condition)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return torch.as_tensor(self.head(pooled)).squeeze(1)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The probability of a match: (B,) in [0, 1]."""
        return torch.sigmoid(self(pixels, text))

    def weights_sha256(self) -> str:
        """Digest of the tensors, as :meth:`save_pretrained` would write them."""
        return hashlib.sha256(save(self.state_dict())).hexdigest()

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, vocabulary.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / WEIGHTS_FILE)
        (folder / WORDS_FILE).write_text(json.dumps(self.words) + "\n")
        config = {"architecture": "ToyJudge"} | asdict(self.shape)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Self:
        """The judge of a folder as a scorer of kind ``toy-judge``. Raises InputError."""
        return cls.from_pretrained(folder).to(device=device, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """The judge of a folder, ready to score.

        Raises:
            InputError: the folder holds no judge.
        """
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(f"{folder}: no judge there ({CONFIG_FILE} is missing); run `rglcd toy build`")
        config = json.loads((folder / CONFIG_FILE).read_text())
        if config.pop("architecture", None) != "ToyJudge":
            raise InputError(f"{folder / CONFIG_FILE}: not a toy judge; name the folder that `rglcd toy build` wrote")
        judge = cls(json.loads((folder / WORDS_FILE).read_text()), JudgeShape(**config))
        judge.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return judge.eval().requires_grad_(False)


class _ResidualBlock(nn.Module):
    """Two convolutions with group normalisation; the condition scales and shifts between them."""

    def __init__(self, channels: int, out_channels: int, condition: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, out_channels, 1, stride=stride)
        self.before, self.between = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, out_channels)
        self.film = nn.Linear(condition, 2 * out_channels)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        hidden = self.between(self.first(F.silu(self.before(features))))
        gain, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return torch.as_tensor(self.skip(features) + self.second(F.silu(hidden * (1 + gain) + shift)))
