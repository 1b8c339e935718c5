"""The toy's VAE (the codec): a diffusers AutoencoderKL from 32 x 32 pixels to 8 x 8 x 4 latents, trained in two phases.

First encoder and decoder together; then, with the latents' mean and deviation folded into the two 1 x 1 convolutions,
the decoder alone on noisy latents, because a diffusion model's latents are never exact.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from rglcd.toy.resuming import Loop
from rglcd.toy.training import Curve, cosine, descend, draw_indices

# Stable Diffusion's own factor: a pipeline that forgets to scale is wrong by a factor of five, which shows.
SCALING_FACTOR: Final = 0.18215
FOREGROUND_DISTANCE: Final = 0.25  # of [-1, 1], in any channel, from the median of the border


@dataclass(frozen=True)
class CodecSettings:
    """How the codec is trained; a change of any of these trains it again.

    Of its `num_pictures`, `percent_flawed` have flaws: a codec that never saw them would mend them.
    """

    seed: int = 11
    num_pictures: int = 16384
    percent_flawed: int = 50
    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    groups: int = 4
    batch: int = 16
    learning_rate: float = 3e-3
    num_joint_steps: int = 4000
    num_decoder_steps: int = 2200
    decoder_learning_rate: float = 2e-3
    latent_noise: float = 0.06
    log_variance_bias: float = -6.0
    foreground_weight: float = 3.0
    chroma_weight: float = 2.0
    absolute_weight: float = 0.5
    kl_weight: float = 1e-4


def train_codec(pixels: Tensor, settings: CodecSettings, *, states: Path | None = None) -> tuple[AutoencoderKL, Curve]:
    """Train on `pixels` (N, 3, 32, 32) in [0, 1]; the codec's scaled latents have about zero mean and unit variance.

    Each phase keeps its state in the folder `states` and goes on from there.
    """
    torch.manual_seed(settings.seed)
    codec = build_codec(settings, side=pixels.shape[-1])
    curve = Curve("codec")
    images = pixels * 2 - 1
    _train_jointly(codec, images, settings, curve, states)
    fold_statistics(codec, images[:2048])
    _train_decoder(codec, images, settings, curve, states)
    return codec.eval(), curve


def build_codec(settings: CodecSettings, *, side: int) -> AutoencoderKL:
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
def coded(codec: AutoencoderKL, pixels: Tensor) -> Tensor:
    """What the codec makes of pictures in [0, 1], by way of its posterior's mode."""
    parts = [codec.decode(codec.encode(part * 2 - 1).latent_dist.mode()).sample for part in torch.split(pixels, 128)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


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
    """Foreground-weighted squared error, an absolute error that grows with progress in [0, 1], and a chroma term.

    Foreground is what differs from the ground, widened by a pixel; all of it in [-1, 1].
    """
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2)
    ground = border.median(dim=2).values[:, :, None, None]
    far = ((images - ground).abs().amax(1, keepdim=True) > FOREGROUND_DISTANCE).float()
    weight = 1 + (settings.foreground_weight - 1) * F.max_pool2d(far, 3, stride=1, padding=1)
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


def _train_jointly(codec: AutoencoderKL, images: Tensor, settings: CodecSettings, curve: Curve, states: Path | None) -> None:
    draws = torch.Generator().manual_seed(settings.seed + 1)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=settings.learning_rate, weight_decay=1e-4, fused=True)
    total = settings.num_joint_steps
    for step in Loop(codec, optimizer, draws, curve).steps(total, states and states / "codec-joint.pt"):
        cosine(optimizer, settings.learning_rate, step=step, total=total)
        batch = images[draw_indices(len(images), settings.batch, draws)]
        posterior = codec.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draws)
        decoded = codec.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(decoded, batch, settings, progress=step / total)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        descend(loss + settings.kl_weight * kl, optimizer)
        curve.add("joint", step, total=total, loss=loss)


def _train_decoder(codec: AutoencoderKL, images: Tensor, settings: CodecSettings, curve: Curve, states: Path | None) -> None:
    draws = torch.Generator().manual_seed(settings.seed + 2)
    with torch.no_grad():
        latents = torch.cat([codec.encode(part).latent_dist.mean for part in torch.split(images, 256)])
    decoder = nn.ModuleList([codec.post_quant_conv, codec.decoder])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.decoder_learning_rate, fused=True)
    width = settings.latent_noise / SCALING_FACTOR
    total = settings.num_decoder_steps
    for step in Loop(decoder, optimizer, draws, curve).steps(total, states and states / "codec-decoder.pt"):
        cosine(optimizer, settings.decoder_learning_rate, step=step, total=total)
        chosen = draw_indices(len(images), settings.batch, draws)
        noise = torch.randn(latents[chosen].shape, generator=draws)
        decoded = codec.decode(latents[chosen] + width * noise).sample
        loss = reconstruction_loss(decoded, images[chosen], settings, progress=1.0)
        descend(loss, optimizer)
        curve.add("decoder", step, total=total, loss=loss)
