"""What ``prepare`` laid out, opened: the models that several stages share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rglcd.data.manifest import folder_digest, read_verified
from rglcd.errors import InputError
from rglcd.models.loading import read_json
from rglcd.rewards.protocol import Reward
from rglcd.rewards.registry import load_scorer, needs_weights


@dataclass(frozen=True)
class Pretrained:
    """The artifact ``pretrained``: a teacher folder, scorers by name, a feature network."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Pretrained":
        """What ``prepare`` published in ``folder``; :class:`InputError` names a file that is no longer what it published."""
        read_verified(folder, made_by="prepare")
        return cls(folder)

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    def scorer(self, name: str, *, dtype: torch.dtype, device: torch.device) -> Reward:
        """The reward model called ``name``."""
        return load_scorer(self._kind(name), self.folder / "scorers" / name, dtype=dtype, device=device)

    def features_kind(self) -> str:
        """What kind of network gives the features that FID compares."""
        kind: str = self._layout()["features"]["kind"]
        return kind

    def scorer_digest(self, name: str) -> str:
        """A digest of the scorer's weights, or of its kind where it has none."""
        kind = self._kind(name)
        return folder_digest(self.folder / "scorers" / name) if needs_weights(kind) else kind

    def _kind(self, name: str) -> str:
        scorers = self._layout()["scorers"]
        if name not in scorers:
            raise InputError(f"{self.folder} has no scorer {name!r}; it has: {', '.join(scorers)}")
        kind: str = scorers[name]["kind"]
        return kind

    def _layout(self) -> dict[str, Any]:
        return read_json(self.folder / "scorers.json")
