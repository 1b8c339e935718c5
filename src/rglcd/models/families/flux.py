"""FLUX.1: a flow, whose transformer reads latents packed two by two; CLIP's pooled caption and T5; FLUX.1-dev is given its guidance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.families.protocol import Call, Config, Family, split_ids
from rglcd.models.text_towers import TextPart, TextTower

T5_TOKENS: Final = 512
"""``max_sequence_length`` of diffusers' pipeline."""
_SIDE: Final = 2
"""Of the squares of latents that are packed into one token."""


class Flux(Family):
    """The network is given sigma as time. With ``guidance_embeds`` it is given omega, in the scale of diffusers' ``guidance_scale``."""

    title = "FLUX.1"
    pipelines = ("FluxPipeline",)
    network = FluxTransformer2DModel
    text_kinds = (CLIPTextModel, T5EncoderModel)
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def output(self, network: nn.Module, config: Config, call: Call) -> Tensor:
        cond, (height, width) = call.cond, call.z_t.shape[-2:]
        rows, columns = height // _SIDE, width // _SIDE
        sample: Tensor = network(
            hidden_states=packed(call.z_t),
            timestep=call.sigma,
            guidance=call.omega,
            encoder_hidden_states=cond.embeddings,
            pooled_projections=cond.pooled,
            txt_ids=torch.zeros(cond.embeddings.shape[1], 3, device=call.z_t.device, dtype=call.z_t.dtype),
            img_ids=_places(rows, columns, like=call.z_t),
        ).sample
        return unpacked(sample, rows=rows, columns=columns)

    def takes_omega(self, config: Config) -> bool:
        return bool(config.guidance_embeds)

    def guides_itself(self, config: Config) -> bool:
        return bool(config.guidance_embeds)

    def student_config(self, config: Mapping[str, Any], *, omega_embedding_dim: int | None) -> dict[str, Any]:
        if omega_embedding_dim is not None:
            raise InputError(
                "distillation.student: a student of FLUX.1 has its teacher's input for guidance, if that has one; set kind to same_inputs, "
                "and distillation.omega in the scale of diffusers' guidance_scale, [3.5, 3.5]"
            )
        return dict(config)

    def latent_channels(self, config: Config) -> int:
        return int(config.in_channels) // _SIDE**2

    def patch(self, config: Config) -> int:
        return _SIDE

    def blank(self, config: Config, rows: int, *, dtype: torch.dtype, device: torch.device) -> Condition:
        embeddings = torch.empty(rows, T5_TOKENS, config.joint_attention_dim, dtype=dtype, device=device)
        return Condition(embeddings, torch.empty(rows, config.pooled_projection_dim, dtype=dtype, device=device))

    def text_parts(self, folder: Path) -> tuple[TextPart, ...]:
        clip, t5 = self.text_kinds
        return (TextPart("text_encoder", "tokenizer", clip), TextPart("text_encoder_2", "tokenizer_2", t5, T5_TOKENS))

    def encode(self, towers: Sequence[TextTower], ids: Tensor) -> Condition:
        clip, t5 = towers
        of_clip, of_t5 = split_ids(towers, ids)
        return Condition(t5.model(of_t5).last_hidden_state, clip.model(of_clip).pooler_output)


def packed(latents: Tensor) -> Tensor:
    """(B, C, h, w) as (B, h w / 4, 4 C), a token for each square of two by two."""
    squares = latents.unflatten(3, (-1, _SIDE)).unflatten(2, (-1, _SIDE))
    tokens: Tensor = squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return tokens


def unpacked(tokens: Tensor, *, rows: int, columns: int) -> Tensor:
    """The latents (B, C, h, w) of :func:`packed` tokens, so many ``rows`` of ``columns``."""
    squares = tokens.unflatten(2, (-1, _SIDE, _SIDE)).unflatten(1, (rows, columns))
    latents: Tensor = squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return latents


def _places(rows: int, columns: int, *, like: Tensor) -> Tensor:
    """(rows columns, 3): zero, row and column of each token."""
    row, column = (torch.arange(count, device=like.device, dtype=like.dtype) for count in (rows, columns))
    grid = torch.meshgrid(row, column, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1)
