"""The latent proxy reward model (LRM): a CLIP whose image tower looks at latents (RG-LCD, section 4.2).

The image tower is a vision transformer on latents; the text side is the expert's own frozen text tower,
whose pooled features the cache already holds, behind one trainable projection that starts as the identity.
So no text tower runs while training, and a caption costs its D numbers. Unlike the released code, which
divides by the VAE's scaling factor first, the tower sees the latents as the student does: scaled.

Shapes: B batch, (C, h, w) latents, D text width.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from rglcd.errors import InputError
from rglcd.models.loading import read_json


@dataclass(frozen=True)
class LatentRewardShape:
    """Sizes of the tower. ``latent`` is (C, h, w); ``patch`` and ``width`` as in a ViT; ``text_dim`` is D."""

    latent: tuple[int, int, int]
    text_dim: int
    patch: int
    width: int
    num_layers: int
    num_heads: int

    def __post_init__(self) -> None:
        _, height, width = self.latent
        if height % self.patch or width % self.patch:
            raise InputError(f"pretraining.tower.patch {self.patch} does not divide the latent's {height} x {width}")
        if self.width % self.num_heads:
            raise InputError(f"pretraining.tower.num_heads {self.num_heads} does not divide its width {self.width}")


class LatentRewardModel(nn.Module):
    """``model(latents, text)`` gives logits (B,): cosine times the learnt inverse temperature."""

    def __init__(self, shape: LatentRewardShape) -> None:
        super().__init__()
        self.shape = shape
        channels, height, width = shape.latent
        tokens = (height // shape.patch) * (width // shape.patch) + 1
        self.patches = nn.Conv2d(channels, shape.width, shape.patch, stride=shape.patch)
        self.class_token = nn.Parameter(shape.width**-0.5 * torch.randn(shape.width))
        self.positions = nn.Parameter(shape.width**-0.5 * torch.randn(tokens, shape.width))
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.num_heads, 4 * shape.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, shape.num_layers, norm=nn.LayerNorm(shape.width), enable_nested_tensor=False)
        self.projection = nn.Linear(shape.width, shape.text_dim, bias=False)
        self.text_projection = nn.Linear(shape.text_dim, shape.text_dim, bias=False)
        nn.init.eye_(self.text_projection.weight)
        # CLIP's start: a temperature of 0.07.
        self.log_scale = nn.Parameter(torch.tensor(2.6593))

    def embed_latents(self, latents: Tensor) -> Tensor:
        """Unit vectors (B, D) of latents (B, C, h, w)."""
        patches = self.patches(latents).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(len(latents), 1, -1)
        hidden = self.blocks(torch.cat([class_token, patches], dim=1) + self.positions)
        return normalize(self.projection(hidden[:, 0]), dim=-1)

    def embed_text(self, text: Tensor) -> Tensor:
        """Unit vectors (B, D) of the expert's text features (B, D)."""
        return normalize(self.text_projection(text), dim=-1)

    def score(self, latents: Tensor, text: Tensor) -> Tensor:
        """Cosine (B,) in [-1, 1]: the reward that guides the student."""
        return (self.embed_latents(latents) * self.embed_text(text)).sum(dim=-1)

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        return self.score(latents, text) * self.log_scale.exp()

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(folder / "model.safetensors"))
        (folder / "config.json").write_text(json.dumps(asdict(self.shape), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> "LatentRewardModel":
        """What :meth:`save` wrote; :class:`InputError` when the folder holds something else."""
        declared = read_json(folder / "config.json")
        try:
            model = cls(LatentRewardShape(**{**declared, "latent": tuple(declared["latent"])}))
            model.load_state_dict(load_file(str(folder / "model.safetensors")))
        except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise InputError(f"{folder} is not a latent reward model: {' '.join(str(error).split())[:300]}") from None
        return model.to(device)
