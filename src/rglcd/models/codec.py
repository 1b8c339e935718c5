"""The teacher's frozen VAE: the only place that converts between pixels, moments and latents.

Shapes: B batch, (H, W) pixels, (C, h, w) latents with h = H / factor.

    pixels   (B, 3, H, W) in [0, 1]
    moments  (B, C, h, w) mean and log-variance, as the VAE gives them: what the latent cache stores
    latents  (B, C, h, w) scaled by ``vae.config.scaling_factor``: the networks' inputs
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor, nn

from rglcd.errors import InputError
from rglcd.models.families import NAME_ANOTHER
from rglcd.models.loading import load_weights, read_json

_NO_SPREAD: Final = -30.0
"""The smallest log-variance of diffusers' ``AutoencoderKL``: of a posterior that is a point."""


@dataclass(frozen=True)
class Moments:
    """Mean and log-variance (B, C, h, w) of the VAE's posterior, unscaled."""

    mean: Tensor
    logvar: Tensor


class Codec:
    """A frozen ``AutoencoderKL``, or SANA's deterministic ``AutoencoderDC``, behind four conversions."""

    def __init__(self, vae: AutoencoderKL | AutoencoderDC) -> None:
        self.vae = vae.eval().requires_grad_(False)
        if isinstance(vae, AutoencoderKL):
            for attention in filter(None, vae.decoder.mid_block.attentions):
                attention.register_forward_hook(_laid_out_for_groupnorm)
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.get("shift_factor") or 0.0)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "Codec":
        """The VAE of the diffusers pipeline in ``folder``."""
        vae = load_weights(vae_class(folder), folder / "vae", dtype=dtype).to(device)
        for key in ("latents_mean", "latents_std"):
            if vae.config.get(key) is not None:
                raise InputError(
                    f"{folder}/vae/config.json says {key}: its latents are scaled channel by channel (Playground v2.5), which is not "
                    f"supported; {NAME_ANOTHER}"
                )
        return cls(vae)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of a square image of ``resolution`` pixels; :class:`InputError` when the VAE cannot halve it evenly."""
        factor = _factor(self.vae.config)
        if resolution % factor:
            raise InputError(f"model.resolution {resolution} is not a multiple of {factor}, the factor of this teacher's VAE; choose one")
        return int(self.vae.config.latent_channels), resolution // factor, resolution // factor

    def recompute_activations(self) -> None:
        """Keep fewer of the decoder's activations for its backward pass; :class:`InputError` for a VAE that cannot compute them anew."""
        try:
            self.vae.enable_gradient_checkpointing()
        except ValueError:
            raise InputError(f"reward.activations recomputed: diffusers' {type(self.vae).__name__} cannot; set it to kept") from None

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
        encoded = self.vae.encode(2 * pixels - 1)
        if isinstance(self.vae, AutoencoderDC):
            return Moments(encoded.latent, torch.full_like(encoded.latent, _NO_SPREAD))
        posterior = encoded.latent_dist
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


def _laid_out_for_groupnorm(_attention: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """The same values on a GPU in the order (B, C, h, w).

    diffusers' attention returns a transposed view, whose order every convolution after it would keep: torch's GroupNorm on CUDA
    copies such a tensor each time, and sums with tensors in the usual order are not vectorised.
    """
    return output.contiguous() if output.is_cuda else output


def vae_class(folder: Path) -> Any:
    """The class of the VAE of the pipeline in ``folder``, one of the two that are read."""
    named = read_json(folder / "vae" / "config.json").get("_class_name") if (folder / "vae").is_dir() else None
    return AutoencoderDC if named == AutoencoderDC.__name__ else AutoencoderKL


def latent_factor(folder: Path) -> int:
    """How many pixels a latent is wide, of the VAE of the pipeline in ``folder``."""
    return _factor(read_json(folder / "vae" / "config.json"))


def _factor(config: Mapping[str, Any]) -> int:
    levels = config["encoder_block_out_channels" if "encoder_block_out_channels" in config else "block_out_channels"]
    return 1 << (len(levels) - 1)
