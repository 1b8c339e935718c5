"""Image towers on latents for RG-LCD's LRM: a vision transformer and a ResNet, after CLIP's (arXiv 2103.00020, section 2.4).

Both take latents of any height and width: what does not fill a patch is padded, and the learnt positions, which belong to
the grid of the latents that the tower was made for, are interpolated to another grid.

Shapes: B batch, (C, h, w) latents, N positions of a grid, W width, D output width.
"""

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, relu, scaled_dot_product_attention

from rglcd.errors import InputError

# 16 channels a group: Group Normalization (arXiv 1803.08494), Table 3.
_GROUP = 16


@dataclass(frozen=True)
class VitShape:
    """Sizes of the latent vision transformer: ``patch`` latents a side, ``width`` W."""

    patch: int
    width: int
    num_layers: int
    num_heads: int

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise InputError(f"pretraining.tower.num_heads {self.num_heads} does not divide its width {self.width}; change one of them")


@dataclass(frozen=True)
class ResNetShape:
    """Sizes of the latent ResNet: bottleneck ``blocks`` of each stage, ``width`` of the first, a multiple of 32."""

    blocks: tuple[int, ...]
    width: int

    def __post_init__(self) -> None:
        if not self.blocks or self.width % 32:
            raise InputError(f"pretraining.tower: a ResNet has stages and a width in multiples of 32, not {self}")


class LatentTower(Protocol):
    """An image tower: its blocks in order and the head after them, so that some can be frozen."""

    blocks: nn.ModuleList
    head: nn.Module

    def __call__(self, latents: Tensor) -> Tensor:
        """Features (B, D) of latents (B, C, h, w)."""
        ...


def build_tower(shape: VitShape | ResNetShape, *, latent: tuple[int, int, int], output: int) -> nn.Module:
    """A tower with random weights whose positions are those of latents (C, h, w) = ``latent``; ``output`` is D."""
    return (
        VitTower(shape, latent=latent, output=output) if isinstance(shape, VitShape) else ResNetTower(shape, latent=latent, output=output)
    )


# --- attention and positions, which both share ---------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention without a bias on the keys.

    A softmax does not see one: its gradient is exactly zero, and Adam would only magnify the rounding of it.
    """

    def __init__(self, width: int, num_heads: int, *, output: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, output)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        query, key, value = self._heads(self.query(queries)), self._heads(self.key(context)), self._heads(self.value(context))
        attended = scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.output(attended.transpose(1, 2).flatten(2)))

    def _heads(self, projected: Tensor) -> Tensor:
        return cast(Tensor, projected.unflatten(-1, (self.num_heads, -1))).transpose(1, 2)


class GridPositions(nn.Module):
    """Learnt positions (1 + N, W): one of the token before the grid, then the grid's, row by row."""

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(width**-0.5 * torch.randn(1 + grid[0] * grid[1], width))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The table for ``grid``: bicubic where it is not its own, as vision transformers are taken to another size."""
        table: Tensor = self.table
        if grid == self.grid:
            return table
        first, rest = table[:1], table[1:]
        planes = rest.T.unflatten(1, self.grid)[None]
        resized: Tensor = interpolate(planes, size=grid, mode="bicubic").flatten(2)
        return torch.cat([first, resized[0].T])


# --- vision transformer --------------------------------------------------------------------------


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, output=width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.attention_norm(hidden)
        hidden = hidden + self.attention(normed, normed)
        return cast(Tensor, hidden + self.mlp(hidden))


class VitTower(nn.Module):
    """CLIP's vision transformer: patches and a class token, normed before and after the blocks; the class token is projected."""

    def __init__(self, shape: VitShape, *, latent: tuple[int, int, int], output: int) -> None:
        super().__init__()
        channels, height, width = latent
        self.patch = shape.patch
        self.patches = nn.Conv2d(channels, shape.width, shape.patch, stride=shape.patch, bias=False)
        self.class_token = nn.Parameter(shape.width**-0.5 * torch.randn(shape.width))
        self.positions = GridPositions((math.ceil(height / shape.patch), math.ceil(width / shape.patch)), shape.width)
        self.norm = nn.LayerNorm(shape.width)
        self.blocks = nn.ModuleList(_TransformerBlock(shape.width, shape.num_heads) for _ in range(shape.num_layers))
        self.head = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, output, bias=False))

    def forward(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        patches = self.patches(pad(latents, (0, -width % self.patch, 0, -height % self.patch)))
        class_token = self.class_token.expand(len(latents), 1, -1)
        tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
        hidden = self.norm(tokens + self.positions(tuple(patches.shape[-2:])))
        for block in self.blocks:
            hidden = block(hidden)
        return cast(Tensor, self.head(hidden[:, 0]))


# --- residual network ----------------------------------------------------------------------------


def _normed(channels: int, out: int, *, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution and its norm: over groups of channels, not over the batch, so that a sample's score is its own."""
    convolution = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.GroupNorm(out // _GROUP, out)]


def _halved() -> nn.Module:
    # An odd side keeps its last row: any size can be halved, down to 1.
    return nn.AvgPool2d(2, ceil_mode=True)


class _Bottleneck(nn.Module):
    """ResNet's bottleneck with the average pool before the strided convolution (ResNet-D), as in CLIP."""

    expansion = 4

    def __init__(self, channels: int, width: int, *, halves: bool) -> None:
        super().__init__()
        out, pool = width * self.expansion, [_halved()] if halves else []
        self.branch = nn.Sequential(
            *_normed(channels, width, kernel=1), nn.ReLU(), *_normed(width, width, kernel=3), nn.ReLU(), *pool,
            *_normed(width, out, kernel=1),
        )  # fmt: skip
        self.shortcut = nn.Sequential(*pool, *_normed(channels, out, kernel=1)) if halves or channels != out else nn.Identity()
        # The block starts as its shortcut: open_clip's start for this network.
        nn.init.zeros_(cast(nn.GroupNorm, self.branch[-1]).weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return relu(self.branch(hidden) + self.shortcut(hidden))


class _AttentionPool(nn.Module):
    """CLIP's attention pool: one query, the mean of the grid, attends to the grid and to itself."""

    def __init__(self, grid: tuple[int, int], width: int, *, output: int) -> None:
        super().__init__()
        self.positions = GridPositions(grid, width)
        self.attention = Attention(width, width // 64, output=output)

    def forward(self, hidden: Tensor) -> Tensor:
        grid = hidden.flatten(2).transpose(1, 2)
        tokens = torch.cat([grid.mean(dim=1, keepdim=True), grid], dim=1) + self.positions(tuple(hidden.shape[-2:]))
        return cast(Tensor, self.attention(tokens[:, :1], tokens)[:, 0])


class ResNetTower(nn.Module):
    """CLIP's modified ResNet: three convolutions at the start, pooled strides, attention for a last pool; group norms."""

    def __init__(self, shape: ResNetShape, *, latent: tuple[int, int, int], output: int) -> None:
        super().__init__()
        channels, height, width = latent
        half = shape.width // 2
        self.stem = nn.Sequential(
            *_normed(channels, half, kernel=3, stride=2), nn.ReLU(), *_normed(half, half, kernel=3), nn.ReLU(),
            *_normed(half, shape.width, kernel=3), nn.ReLU(), _halved(),
        )  # fmt: skip
        self.blocks = nn.ModuleList()
        channels = shape.width
        for stage, num_blocks in enumerate(shape.blocks):
            for number in range(num_blocks):
                block_width = shape.width * 2**stage
                self.blocks.append(_Bottleneck(channels, block_width, halves=stage > 0 and number == 0))
                channels = block_width * _Bottleneck.expansion
        reduction = 2 ** (1 + len(shape.blocks))
        self.head = _AttentionPool((math.ceil(height / reduction), math.ceil(width / reduction)), channels, output=output)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.stem(latents)
        for block in self.blocks:
            hidden = block(hidden)
        return cast(Tensor, self.head(hidden))
