"""The latent proxy reward model (LRM): a CLIP model whose image tower reads latents (RG-LCD, section 4.2).

The text side is the expert's own frozen text tower, whose pooled features the cache already holds, behind one
trainable projection that starts as the identity. So no text tower runs in training, and a caption costs D
numbers. The tower reads scaled latents, as the student does; the released code divides by the VAE's scaling factor first.

Shapes: B batch, (C, h, w) latents, D text width.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from rglcd.errors import InputError
from rglcd.models.latent_towers import LatentTower, ResNetShape, VitShape, build_tower
from rglcd.models.loading import read_json

_TOWERS: dict[str, Callable[..., VitShape | ResNetShape]] = {"vit": VitShape, "resnet": ResNetShape}


@dataclass(frozen=True)
class LatentRewardShape:
    """``latent`` is the (C, h, w) that the tower is trained on, though it takes any height and width; ``text_dim`` is D."""

    latent: tuple[int, int, int]
    text_dim: int
    tower: VitShape | ResNetShape

    def to_json(self) -> dict[str, Any]:
        """Plain values, the tower's with its kind."""
        kind = "vit" if isinstance(self.tower, VitShape) else "resnet"
        return {"latent": list(self.latent), "text_dim": self.text_dim, "tower": {"kind": kind, **asdict(self.tower)}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "LatentRewardShape":
        """Undo :meth:`to_json`; ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        tower = dict(values["tower"])
        kind = _TOWERS[tower.pop("kind")]
        sizes = kind(**{name: tuple(size) if isinstance(size, list) else size for name, size in tower.items()})
        channels, height, width = values["latent"]
        return cls(**{**values, "latent": (channels, height, width), "tower": sizes})


class Embedded(NamedTuple):
    """Unit vectors (B, D) of latents and of captions, and the learnt inverse temperature, a scalar."""

    latents: Tensor
    text: Tensor
    scale: Tensor

    @property
    def logits(self) -> Tensor:
        """Cosine times inverse temperature (B,), each latent with its own caption."""
        return (self.latents * self.text).sum(dim=-1) * self.scale


class LatentRewardModel(nn.Module):
    """``model(latents, text)`` embeds both and has their logits; ``model.score`` is the cosine alone."""

    def __init__(self, shape: LatentRewardShape) -> None:
        super().__init__()
        self.shape = shape
        self.tower = build_tower(shape.tower, latent=shape.latent, output=shape.text_dim)
        self.text_projection = nn.Linear(shape.text_dim, shape.text_dim, bias=False)
        nn.init.eye_(self.text_projection.weight)
        # CLIP's initial value: a temperature of 0.07.
        self.log_scale = nn.Parameter(torch.tensor(2.6593))

    @classmethod
    def at_random(cls, shape: LatentRewardShape, *, seed: int) -> "LatentRewardModel":
        """A model with random weights from ``seed``; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(shape)

    def train_last(self, num_blocks: int, *, text: bool) -> None:
        """Train only the tower's last blocks, its head and the temperature, and, if ``text``, the text's projection.

        Raises :class:`InputError` when the tower has fewer blocks.
        """
        tower = cast(LatentTower, self.tower)
        if num_blocks > len(tower.blocks):
            raise InputError(
                f"reward.tuning.trains.num_blocks is {num_blocks}; the latent tower has {len(tower.blocks)} blocks; choose fewer"
            )
        self.requires_grad_(False)
        for module in (*tower.blocks[len(tower.blocks) - num_blocks :], tower.head, *([self.text_projection] if text else [])):
            module.requires_grad_(True)
        self.log_scale.requires_grad_(True)

    def embed_latents(self, latents: Tensor) -> Tensor:
        """Unit vectors (B, D) of latents (B, C, h, w)."""
        return normalize(self.tower(latents), dim=-1)

    def embed_text(self, text: Tensor) -> Tensor:
        """Unit vectors (B, D) of the expert's text features (B, D)."""
        return normalize(self.text_projection(text), dim=-1)

    def score(self, latents: Tensor, text: Tensor) -> Tensor:
        """Cosine (B,) in [-1, 1]."""
        return (self.embed_latents(latents) * self.embed_text(text)).sum(dim=-1)

    def forward(self, latents: Tensor, text: Tensor) -> Embedded:
        return Embedded(self.embed_latents(latents), self.embed_text(text), self.log_scale.exp())

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(folder / "model.safetensors"))
        (folder / "config.json").write_text(json.dumps(self.shape.to_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> "LatentRewardModel":
        """The model that :meth:`save` wrote. Raises :class:`InputError` when the folder holds something else."""
        declared = read_json(folder / "config.json")
        try:
            model = cls(LatentRewardShape.from_json(declared))
            model.load_state_dict(load_file(str(folder / "model.safetensors")))
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise InputError(f"{folder} is not a latent reward model ({found}); make it with: rglcd run pretrain") from None
        return model.to(device)
