"""The toy teacher's networks, in diffusers' and transformers' own classes; its loss, and how it draws."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rglcd.toy.tokenizer import MAX_TOKENS
from rglcd.toy.training import draw_indices


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher is trained; a change of any of these trains it again."""

    seed: int = 21
    num_pictures: int = 16384
    channels: tuple[int, ...] = (48, 72)
    num_heads: int = 4
    groups: int = 8
    text_width: int = 64
    text_layers: int = 2
    batch: int = 64
    learning_rate: float = 1.5e-3
    num_steps: int = 5000
    caption_dropout: float = 0.1
    ema_decay: float = 0.998
    watch_every: int = 1000
    watch_images: int = 64


@dataclass(frozen=True)
class Examples:
    """Pictures as the codec's posterior (N, 4, 8, 8), and which caption each shows (N,)."""

    mean: Tensor
    deviation: Tensor
    caption_number: Tensor
    captions: tuple[str, ...]


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion v1's schedule; its steps_offset of 1 too, so that no step is spent on noise-free t = 0."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def build_text_encoder(tokenizer: CLIPTokenizer, *, width: int, num_layers: int) -> CLIPTextModel:
    """A CLIP text transformer for the toy's tokenizer, with fresh weights."""
    return CLIPTextModel(text_config(tokenizer, width=width, num_layers=num_layers))


def text_config(tokenizer: CLIPTokenizer, *, width: int, num_layers: int) -> CLIPTextConfig:
    """The shape of a CLIP text transformer for the toy's tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids as Stable Diffusion makes them, padded to the full length: int64 (B, 16)."""
    tokens = tokenizer(list(captions), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return torch.as_tensor(tokens.input_ids)


def assemble(
    codec: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    scheduler: DDIMScheduler | None = None,
) -> StableDiffusionPipeline:
    """The parts as a pipeline of diffusers' own; with the training's scheduler unless another one is given."""
    pipeline = StableDiffusionPipeline(
        vae=codec,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler or build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_unet(settings: TeacherSettings, codec: AutoencoderKL) -> UNet2DConditionModel:
    """Cross-attention at both resolutions: with it at the lower one alone, position is not learned."""
    depth = len(settings.channels)
    return UNet2DConditionModel(
        sample_size=codec.config.sample_size // 2 ** (len(codec.config.block_out_channels) - 1),
        in_channels=codec.config.latent_channels,
        out_channels=codec.config.latent_channels,
        block_out_channels=settings.channels,
        down_block_types=("CrossAttnDownBlock2D",) * depth,
        up_block_types=("CrossAttnUpBlock2D",) * depth,
        layers_per_block=1,
        cross_attention_dim=settings.text_width,
        attention_head_dim=settings.num_heads,  # diffusers counts heads under this name
        norm_num_groups=settings.groups,
    )


@torch.no_grad()
def encode_examples(codec: AutoencoderKL, pixels: Tensor, caption_number: Tensor, captions: tuple[str, ...]) -> Examples:
    """The scaled latents' posterior for `pixels` (N, 3, 32, 32) in [0, 1]."""
    posteriors = [codec.encode(part * 2 - 1).latent_dist for part in torch.split(pixels, 256)]
    factor = codec.config.scaling_factor
    return Examples(
        mean=torch.cat([posterior.mean for posterior in posteriors]) * factor,
        deviation=torch.cat([posterior.std for posterior in posteriors]) * factor,
        caption_number=caption_number,
        captions=captions,
    )


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline | StableDiffusion3Pipeline, captions: Sequence[str], *, num_steps: int, guidance: float, seed: int
) -> Tensor:
    """One picture for each caption by the pipeline's scheduler, DDIM or Euler: (B, 3, 32, 32) in [0, 1]."""
    draws = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(captions), 64):
        chunk = list(captions[start : start + 64])
        pictures = pipeline(prompt=chunk, num_inference_steps=num_steps, guidance_scale=guidance, generator=draws, output_type="pt")
        parts.append(pictures.images)
    return torch.cat(parts)


@torch.no_grad()
def swap(trained: nn.Module, averages: Sequence[Tensor]) -> None:
    """Exchange the weights of ``trained`` and their averages; a second call undoes it."""
    for parameter, average in zip(trained.parameters(), averages, strict=True):
        kept = parameter.clone()
        parameter.copy_(average)
        average.copy_(kept)


def v_loss(
    pipeline: StableDiffusionPipeline,
    ids: Tensor,
    examples: Examples,
    settings: TeacherSettings,
    draws: torch.Generator,
) -> Tensor:
    """Mean squared error of v = alpha eps - sigma z0 (Salimans and Ho 2022); the last row of `ids` is no caption."""
    scheduler = pipeline.scheduler
    chosen = draw_indices(len(examples.mean), settings.batch, draws)
    captions = examples.caption_number[chosen]
    dropped = torch.rand(settings.batch, generator=draws) < settings.caption_dropout
    captions = captions.masked_fill(dropped, len(ids) - 1)
    shape = examples.mean[chosen].shape
    z0 = examples.mean[chosen] + examples.deviation[chosen] * torch.randn(shape, generator=draws)
    eps = torch.randn(shape, generator=draws)
    t = draw_indices(scheduler.config.num_train_timesteps, settings.batch, draws)
    states = pipeline.text_encoder(ids[captions]).last_hidden_state
    predicted = pipeline.unet(scheduler.add_noise(z0, eps, t), t, encoder_hidden_states=states).sample
    return F.mse_loss(predicted, scheduler.get_velocity(z0, eps, t))
