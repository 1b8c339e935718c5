"""The toy's flow teacher in the classes of Stable Diffusion 3: its networks, its loss.

Shapes: B pictures, latents (B, 4, 8, 8), 16 token positions of a caption and as many zeros as diffusers' pipeline has for T5.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from rglcd.toy.teacher_networks import Examples, text_config
from rglcd.toy.training import draw_indices

NUM_ZEROS: Final = int(inspect.signature(StableDiffusion3Pipeline.__call__).parameters["max_sequence_length"].default)
"""In the place of T5, which the toy has none of: the pipeline fills all of its positions."""


@dataclass(frozen=True)
class FlowTeacherSettings:
    """How the flow teacher is trained; a change of any of these trains it again."""

    seed: int = 22
    num_pictures: int = 16384
    width: int = 96
    num_layers: int = 4
    num_heads: int = 4
    patch: int = 2
    text_width: int = 64
    text_layers: int = 2
    batch: int = 64
    learning_rate: float = 1e-3
    num_steps: int = 8000
    caption_dropout: float = 0.1
    ema_decay: float = 0.998
    watch_every: int = 1600
    watch_images: int = 64


def build_flow_pipeline(settings: FlowTeacherSettings, codec: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    """The parts with fresh weights, as a pipeline of diffusers' own: two CLIP encoders, no T5; silent."""
    side = codec.config.sample_size // 2 ** (len(codec.config.block_out_channels) - 1)
    transformer = SD3Transformer2DModel(
        sample_size=side,
        patch_size=settings.patch,
        in_channels=codec.config.latent_channels,
        out_channels=codec.config.latent_channels,
        num_layers=settings.num_layers,
        attention_head_dim=settings.width // settings.num_heads,
        num_attention_heads=settings.num_heads,
        joint_attention_dim=2 * settings.text_width,
        caption_projection_dim=settings.width,
        pooled_projection_dim=2 * settings.text_width,
        pos_embed_max_size=side // settings.patch,
        qk_norm="rms_norm",
    )
    config = text_config(tokenizer, width=settings.text_width, num_layers=settings.text_layers)
    codec.register_to_config(shift_factor=0.0)  # the pipeline wants one said
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=codec,
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def trained_parts(pipeline: StableDiffusion3Pipeline) -> nn.ModuleList:
    """What learns: all but the codec."""
    return nn.ModuleList([pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2])


def read_captions(encoders: Sequence[CLIPTextModelWithProjection], ids: Tensor, num_zeros: int = NUM_ZEROS) -> tuple[Tensor, Tensor]:
    """Of ids (B, 16), as the pipeline reads them: states (B, 16 + zeros, 2 widths) and pooled captions (B, 2 widths)."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return F.pad(states, (0, 0, 0, num_zeros)), torch.cat([output.text_embeds for output in outputs], dim=-1)


class LastKeyCounts(TorchFunctionMode):
    """Attention in which the last of all positions counts as often as if it were there ``times`` times.

    SD3's text positions have no place, so the pipeline's zeros are one position many times over, in every block: softmax gives each the
    same weight, and one with log(times) added to its score has their sum.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.extra = math.log(times)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            bias = torch.zeros(1, args[1].shape[-2])
            bias[:, -1] = self.extra
            given["attn_mask"] = bias
        return func(*args, **given)


def flow_loss(
    pipeline: StableDiffusion3Pipeline, ids: Tensor, examples: Examples, settings: FlowTeacherSettings, draws: torch.Generator
) -> Tensor:
    """Mean squared error of eps - z0 at logit-normal noise levels (arXiv 2403.03206, Sec. 3.1); the last row of ``ids`` is no caption."""
    chosen = draw_indices(len(examples.mean), settings.batch, draws)
    captions = examples.caption_number[chosen]
    dropped = torch.rand(settings.batch, generator=draws) < settings.caption_dropout
    captions = captions.masked_fill(dropped, len(ids) - 1)
    shape = examples.mean[chosen].shape
    z0 = examples.mean[chosen] + examples.deviation[chosen] * torch.randn(shape, generator=draws)
    eps = torch.randn(shape, generator=draws)
    sigma = torch.sigmoid(torch.randn(settings.batch, generator=draws))
    states, pooled = read_captions((pipeline.text_encoder, pipeline.text_encoder_2), ids[captions], num_zeros=1)
    level = sigma[:, None, None, None]
    with LastKeyCounts(NUM_ZEROS):
        predicted = pipeline.transformer(
            hidden_states=(1 - level) * z0 + level * eps,
            timestep=1000 * sigma,
            encoder_hidden_states=states,
            pooled_projections=pooled,
        ).sample
    return F.mse_loss(predicted, eps - z0)
