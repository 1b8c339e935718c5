"""The toy's VAE (the codec): a diffusers AutoencoderKL from 32 x 32 pixels to 8 x 8 x 4 latents, trained in two phases.

First encoder and decoder together; then, with the latents' mean and deviation folded into the two 1 x 1 convolutions,
the decoder alone on noisy latents, because a diffusion model's latents are never exact.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from rglcd.toy.training import Curve, cosine, descend, draw_indices

# Stable Diffusion's own factor: a pipeline that forgets to scale is wrong by a factor of five, which shows.
SCALING_FACTOR: Final = 0.18215


class CodecShape(Protocol):
    """What the settings of a codec's training say of its network."""

    @property
    def channels(self) -> tuple[int, ...]: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def log_variance_bias(self) -> float: ...


@dataclass(frozen=True)
class CodecSettings:
    """How the codec is trained; a change of any of these trains it again."""

    seed: int = 11
    num_pictures: int = 12288
    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    groups: int = 4
    batch: int = 16
    learning_rate: float = 3e-3
    num_joint_steps: int = 1900
    num_decoder_steps: int = 1200
    decoder_learning_rate: float = 1.5e-3
    latent_noise: float = 0.06
    log_variance_bias: float = -6.0
    foreground_weight: float = 5.0
    chroma_weight: float = 2.0
    absolute_weight: float = 0.5
    kl_weight: float = 1e-4


def train_codec(pixels: Tensor, settings: CodecSettings) -> tuple[AutoencoderKL, Curve]:
    """Train on `pixels` (N, 3, 32, 32) in [0, 1]; the codec's scaled latents have about zero mean and unit variance."""
    torch.manual_seed(settings.seed)
    codec = build_codec(settings, side=pixels.shape[-1])
    curve = Curve("codec")
    images = pixels * 2 - 1
    _train_jointly(codec, images, settings, curve)
    fold_statistics(codec, images[:2048])
    _train_decoder(codec, images, settings, curve)
    return codec.eval(), curve


def build_codec(settings: CodecShape, *, side: int) -> AutoencoderKL:
    """The codec with fresh weights."""
    codec = AutoencoderKL(
        block_out_channels=settings.channels,
        down_block_types=("DownEncoderBlock2D",) * len(settings.channels),
        up_block_types=("UpDecoderBlock2D",) * len(settings.channels),
        latent_channels=settings.latent_channels,
        layers_per_block=1,
        norm_num_groups=settings.groups,
        mid_block_add_attention=False,
        sample_size=side,
        scaling_factor=SCALING_FACTOR,
    )
    with torch.no_grad():
        # A posterior of unit width at the start drowns the latents, and the decoder settles on grey.
        codec.quant_conv.bias[settings.latent_channels :] += settings.log_variance_bias
    return codec


@torch.no_grad()
def distorted(codec: AutoencoderKL, pixels: Tensor, *, latent_noise: float, seed: int) -> Tensor:
    """What the codec makes of `pixels` in [0, 1] when up to `latent_noise` is added to their scaled latents."""
    draws = torch.Generator().manual_seed(seed)
    parts = []
    for part in torch.split(pixels, 128):
        latents = codec.encode(part * 2 - 1).latent_dist.mean
        strength = latent_noise / codec.config.scaling_factor * torch.rand(len(part), 1, 1, 1, generator=draws)
        noisy = latents + strength * torch.randn(latents.shape, generator=draws)
        parts.append((codec.decode(noisy).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def reconstruction_loss(decoded: Tensor, images: Tensor, settings: CodecSettings, *, progress: float) -> Tensor:
    """Foreground-weighted squared error, an absolute error that grows with progress in [0, 1], and a chroma term."""
    chroma = images.amax(1, keepdim=True) - images.amin(1, keepdim=True)
    foreground = (F.max_pool2d(chroma, 3, stride=1, padding=1) > 0.2).float()
    weight = 1 + (settings.foreground_weight - 1) * foreground
    error = decoded - images
    tint = error - error.mean(1, keepdim=True)
    squared = (weight * (error.square() + settings.chroma_weight * tint.square())).mean()
    return squared + settings.absolute_weight * progress * (weight * error.abs()).mean()


@torch.no_grad()
def fold_statistics(codec: AutoencoderKL, images: Tensor) -> None:
    """Fold each channel's mean and deviation into the 1 x 1 convolutions: the scaled latents become standard.

    A latent y turns into (y - mean) * gain, its log-variance grows by 2 log gain, and the decoder undoes both.
    """
    count = codec.config.latent_channels
    latents = codec.encode(images).latent_dist.mean
    mean = latents.mean((0, 2, 3))
    gain = 1 / (latents.std((0, 2, 3)) * codec.config.scaling_factor)
    encoder, decoder = codec.quant_conv, codec.post_quant_conv
    encoder.weight[:count] *= gain[:, None, None, None]
    encoder.bias[:count] = (encoder.bias[:count] - mean) * gain
    encoder.bias[count:] += 2 * gain.log()
    decoder.bias += decoder.weight[:, :, 0, 0] @ mean
    decoder.weight /= gain[None, :, None, None]


def _train_jointly(codec: AutoencoderKL, images: Tensor, settings: CodecSettings, curve: Curve) -> None:
    draws = torch.Generator().manual_seed(settings.seed + 1)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=settings.learning_rate, weight_decay=1e-4, fused=True)
    total = settings.num_joint_steps
    for step in range(total):
        cosine(optimizer, settings.learning_rate, step=step, total=total)
        batch = images[draw_indices(len(images), settings.batch, draws)]
        posterior = codec.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draws)
        decoded = codec.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(decoded, batch, settings, progress=step / total)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        descend(loss + settings.kl_weight * kl, optimizer)
        curve.add("joint", step, total=total, loss=loss)


def _train_decoder(codec: AutoencoderKL, images: Tensor, settings: CodecSettings, curve: Curve) -> None:
    draws = torch.Generator().manual_seed(settings.seed + 2)
    with torch.no_grad():
        latents = torch.cat([codec.encode(part).latent_dist.mean for part in torch.split(images, 256)])
    decoder = torch.nn.ModuleList([codec.post_quant_conv, codec.decoder])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.decoder_learning_rate, fused=True)
    width = settings.latent_noise / SCALING_FACTOR
    total = settings.num_decoder_steps
    for step in range(total):
        cosine(optimizer, settings.decoder_learning_rate, step=step, total=total)
        chosen = draw_indices(len(images), settings.batch, draws)
        noise = torch.randn(latents[chosen].shape, generator=draws)
        decoded = codec.decode(latents[chosen] + width * noise).sample
        loss = reconstruction_loss(decoded, images[chosen], settings, progress=1.0)
        descend(loss, optimizer)
        curve.add("decoder", step, total=total, loss=loss)
