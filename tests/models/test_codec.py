"""The VAE wrapper: conversions between pixels, moments and latents equal diffusers'."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from rglcd.errors import InputError
from rglcd.models.codec import Codec, Moments
from tests.tiny_models import RESOLUTION


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Codec:
    return Codec.load(folder, dtype=dtype, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def codec(teacher_folder: Path) -> Codec:
    return load(teacher_folder)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(1))


def test_moments_and_decoded_pixels_have_the_announced_shapes(codec: Codec, pixels: torch.Tensor) -> None:
    shape = codec.latent_shape(RESOLUTION)
    moments = codec.moments(pixels)
    assert shape == (4, 8, 8)
    assert moments.mean.shape == moments.logvar.shape == (3, *shape)
    latents = codec.latents(moments, torch.zeros_like(moments.mean))
    assert latents.shape == (3, *shape)
    assert codec.decode(latents).shape == pixels.shape


def test_moments_are_diffusers_posterior_of_pixels_scaled_to_minus_one_to_one(codec: Codec, pixels: torch.Tensor) -> None:
    noise = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        posterior = codec.vae.encode(pixels * 2 - 1).latent_dist
    moments = codec.moments(pixels)
    assert torch.equal(moments.mean, posterior.mean)
    assert torch.equal(moments.logvar, posterior.logvar)
    theirs = (posterior.mean + posterior.std * noise) * codec.vae.config.scaling_factor
    torch.testing.assert_close(codec.latents(moments, noise), theirs)


def test_latents_are_posterior_mean_plus_noise_times_deviation(codec: Codec) -> None:
    moments = Moments(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8))
    at_mean = codec.latents(moments, torch.zeros(2, 4, 8, 8))
    one_up = codec.latents(moments, torch.ones(2, 4, 8, 8))
    scale = codec.vae.config.scaling_factor
    torch.testing.assert_close(at_mean, moments.mean * scale)
    torch.testing.assert_close(one_up - at_mean, (moments.logvar / 2).exp() * scale)


def test_decode_equals_diffusers_decode_of_unscaled_latents_scaled_to_zero_to_one(codec: Codec) -> None:
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        theirs = (codec.vae.decode(latents / codec.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(codec.decode(latents), theirs)


def test_a_shift_factor_is_undone_by_decode() -> None:
    torch.manual_seed(0)
    sizes = {"block_out_channels": [4, 4], "norm_num_groups": 2, "down_block_types": ["DownEncoderBlock2D"] * 2}
    vae = AutoencoderKL(**sizes, up_block_types=["UpDecoderBlock2D"] * 2, scaling_factor=0.5, shift_factor=0.25)
    codec = Codec(vae)
    mean = torch.randn(1, 4, 8, 8)
    latents = codec.latents(Moments(mean, torch.zeros_like(mean)), torch.zeros_like(mean))
    torch.testing.assert_close(latents, (mean - 0.25) * 0.5)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(latents), (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1))


def test_decoded_pixels_stay_in_zero_to_one_for_extreme_latents(codec: Codec) -> None:
    pixels = codec.decode(1e3 * torch.randn(4, 4, 8, 8))
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_gradient_of_decode_equals_the_finite_difference(teacher_folder: Path) -> None:
    codec = load(teacher_folder, torch.float64)
    generator = torch.Generator().manual_seed(3)
    latents = (0.1 * torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)).requires_grad_()
    direction = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(codec.decode(latents).square().sum(), latents)
    step = 1e-6
    with torch.no_grad():
        up, down = (codec.decode(latents + sign * step * direction).square().sum() for sign in (1, -1))
    assert gradient.abs().max() > 0
    assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / (2 * step), rel=1e-5)


def test_the_vae_is_frozen_and_moments_carry_no_graph(codec: Codec, pixels: torch.Tensor) -> None:
    assert not any(parameter.requires_grad for parameter in codec.vae.parameters())
    assert not codec.moments(pixels.clone().requires_grad_()).mean.requires_grad


@pytest.mark.parametrize("resolution", [1, 15, 17])
def test_resolution_that_is_no_multiple_of_the_vae_factor_is_refused(codec: Codec, resolution: int) -> None:
    with pytest.raises(InputError, match=f"resolution {resolution} is not a multiple of 2"):
        codec.latent_shape(resolution)
