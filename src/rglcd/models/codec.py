"""The teacher's frozen VAE: the only place that converts between pixels, moments and latents.

Shapes: B batch, (H, W) pixels, (C, h, w) latents with h = H / factor.

    pixels   (B, 3, H, W) in [0, 1]
    moments  (B, C, h, w) mean and log-variance, as the VAE gives them: what the latent cache stores
    latents  (B, C, h, w) scaled by ``vae.config.scaling_factor``: the networks' inputs
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from rglcd.errors import InputError
from rglcd.models.loading import load_weights


@dataclass(frozen=True)
class Moments:
    """Mean and log-variance (B, C, h, w) of the VAE's posterior, unscaled."""

    mean: Tensor
    logvar: Tensor


class Codec:
    """A frozen ``AutoencoderKL`` behind four conversions."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.shift_factor or 0.0)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "Codec":
        """The VAE of the diffusers pipeline in ``folder``."""
        vae = load_weights(AutoencoderKL, folder / "vae", dtype=dtype).to(device)
        for key in ("latents_mean", "latents_std"):
            if vae.config.get(key) is not None:
                raise InputError(
                    f"{folder}/vae/config.json says {key}: its latents are scaled channel by channel (Playground v2.5), which is not "
                    "supported; name a teacher of Stable Diffusion 1.x, 2.x or XL"
                )
        return cls(vae)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of a square image of ``resolution`` pixels; :class:`InputError` when the VAE cannot halve it evenly."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if resolution % factor:
            raise InputError(f"model.resolution {resolution} is not a multiple of {factor}, the factor of this teacher's VAE; choose one")
        return int(self.vae.config.latent_channels), resolution // factor, resolution // factor

    def encode_in(self, dtype: torch.dtype) -> None:
        """From now on encode in ``dtype``, but for the layer that pixels enter by and those that moments leave by, which stay float32.

        For a codec in float32. Bytes are so not rounded before they are encoded, nor moments after.
        """
        encoder = self.vae.encoder
        encoder.to(dtype)
        for layer in (encoder.conv_in, encoder.conv_out):
            layer.float()
        encoder.conv_in.register_forward_hook(lambda _layer, _inputs, output: output.to(dtype))
        encoder.conv_out.register_forward_pre_hook(lambda _layer, inputs: tuple(each.float() for each in inputs))

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Moments:
        """The posterior of ``pixels``."""
        posterior = self.vae.encode(2 * pixels - 1).latent_dist
        return Moments(posterior.mean, posterior.logvar)

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        """A sample of the posterior, scaled; ``noise`` is standard normal, or zero for the mean."""
        sample = moments.mean + torch.exp(0.5 * moments.logvar) * noise
        return (sample - self._shift) * self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of ``latents``, clamped to [0, 1]; back-propagates where it does not saturate."""
        dtype = next(self.vae.parameters()).dtype
        raw = self.vae.decode((latents / self._scale + self._shift).to(dtype)).sample
        pixels: Tensor = (raw / 2 + 0.5).clamp(0, 1)
        return pixels
