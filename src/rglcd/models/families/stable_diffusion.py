"""Stable Diffusion 1.x, 2.x and XL: a UNet that predicts eps, v or x0; one CLIP encoder, or XL's two and the picture's sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from rglcd.core.condition import Condition
from rglcd.core.guidance import guidance_embedding
from rglcd.errors import InputError
from rglcd.models.families.protocol import Call, Config, Family, split_ids
from rglcd.models.loading import read_json
from rglcd.models.text_towers import CLIP_TOKENS, TextPart, TextTower

XL_CONDITIONING: Final = "text_time"
"""``addition_embed_type`` of SDXL's UNet: pooled caption and embedded sizes are added to the time embedding."""

OMEGA_LAYER: Final = "time_embedding.cond_proj.weight"
"""What a student has and its teacher has not: bias-free, zero at the start."""


class StableDiffusion(Family):
    """A student's omega enters through ``time_embedding.cond_proj``."""

    title = "Stable Diffusion 1.x, 2.x or XL"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    network = UNet2DConditionModel
    folder = "unet"
    is_flow = False
    text_kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    omega_layers: ClassVar[tuple[str, ...]] = (OMEGA_LAYER,)

    def output(self, network: nn.Module, config: Config, call: Call) -> Tensor:
        dim = config.time_cond_proj_dim
        embedding = None if dim is None or call.omega is None else guidance_embedding(call.omega, dim=dim).to(call.z_t.dtype)
        sample: Tensor = network(call.z_t, call.t, timestep_cond=embedding, **unet_kwargs(call.cond)).sample
        return sample

    def takes_omega(self, config: Config) -> bool:
        return config.time_cond_proj_dim is not None

    def student_config(self, config: Mapping[str, Any], *, omega_embedding_dim: int | None) -> dict[str, Any]:
        if omega_embedding_dim is None:
            raise InputError(
                f"distillation.student of kind same_inputs: a whole student of {self.title} is given omega, which diffusers' "
                "LatentConsistencyModelPipeline asks for; set kind to full"
            )
        return {**config, "time_cond_proj_dim": omega_embedding_dim}

    def start_omega(self, network: nn.Module) -> None:
        nn.init.zeros_(network.get_parameter(OMEGA_LAYER))

    def refuse(self, config: Config, *, latent_channels: int, where: Path) -> None:
        """Inpainting, depth and edit models take more than the latents, others give more."""
        taken, given = int(config.in_channels), int(config.out_channels)
        if taken != latent_channels:
            extra = {9: "an inpainting model", 8: "an edit or upscaling model", 5: "a depth model"}.get(
                taken, "a model with further inputs"
            )
            raise InputError(
                f"{where} takes {taken} channels and the VAE's latents have {latent_channels}: it is {extra}; "
                f"name a teacher of {self.title}"
            )
        if given != latent_channels:
            raise InputError(
                f"{where} gives {given} channels and the VAE's latents have {latent_channels} (a learned variance?): "
                f"name a teacher of {self.title}"
            )

    def refuse_conditioning(self, config: Config, folder: Path) -> None:
        """Students are given omega, unCLIP and others embeddings of pictures or classes."""
        if config.time_cond_proj_dim is not None:
            raise InputError(
                f"{folder}/unet already takes a guidance embedding: it is a distilled student; name the teacher that it was distilled from"
            )
        given = XL_CONDITIONING if is_xl(folder) else None
        if config.addition_embed_type != given or config.class_embed_type is not None:
            taken = config.addition_embed_type or config.class_embed_type
            raise InputError(
                f"{folder}/unet takes {taken or 'a caption alone'} as conditioning and its pipeline gives {given or 'a caption alone'}: "
                f"name a teacher of {self.title}"
            )

    def patch(self, config: Config) -> int:
        return int(2 ** (len(config.block_out_channels) - 1))

    def blank(self, config: Config, rows: int, *, dtype: torch.dtype, device: torch.device) -> Condition:
        embeddings = torch.empty(rows, CLIP_TOKENS, config.cross_attention_dim, dtype=dtype, device=device)
        if config.addition_embed_type != XL_CONDITIONING:
            return Condition(embeddings)
        pooled_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pooled = torch.empty(rows, pooled_width, dtype=dtype, device=device)
        return Condition(embeddings, pooled, torch.zeros(rows, 6, dtype=torch.int64, device=device))

    def text_parts(self, folder: Path) -> tuple[TextPart, ...]:
        first = TextPart("text_encoder", "tokenizer", CLIPTextModel)
        return (first, TextPart("text_encoder_2", "tokenizer_2", CLIPTextModelWithProjection)) if is_xl(folder) else (first,)

    def encode(self, towers: Sequence[TextTower], ids: Tensor) -> Condition:
        if len(towers) == 1:
            return Condition(towers[0].model(ids.to(towers[0].model.device)).last_hidden_state)
        outputs = [tower.model(part, output_hidden_states=True) for tower, part in zip(towers, split_ids(towers, ids), strict=True)]
        # The last layer but one of both, and the projected caption of the second: SDXL, arXiv 2307.01952, Sec. 2.1
        return Condition(torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds)


def unet_kwargs(cond: Condition) -> dict[str, Any]:
    """``cond`` as the arguments of diffusers' UNet."""
    if cond.pooled is None:
        return {"encoder_hidden_states": cond.embeddings}
    return {"encoder_hidden_states": cond.embeddings, "added_cond_kwargs": {"text_embeds": cond.pooled, "time_ids": cond.time_ids}}


def is_xl(folder: Path) -> bool:
    """Whether the pipeline of this family in ``folder`` is SDXL's, by the parts that its index names."""
    return "text_encoder_2" in read_json(folder / "model_index.json")
