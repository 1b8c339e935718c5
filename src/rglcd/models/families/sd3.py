"""Stable Diffusion 3 and 3.5: a flow, whose transformer reads two CLIP encoders and T5 (arXiv 2403.03206)."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from rglcd.core.condition import Condition
from rglcd.models.families.protocol import Call, Config, Family, split_ids
from rglcd.models.loading import read_json
from rglcd.models.text_towers import CLIP_TOKENS, TextPart, TextTower

T5_TOKENS: Final = 256
"""``max_sequence_length`` of diffusers' pipeline."""


class StableDiffusion3(Family):
    """The network is given 1000 sigma as time; padding of captions is attended to, as in its training, so there is no mask.

    A folder without T5 (``text_encoder_3`` null) is read as diffusers reads it: with zeros in its place.
    """

    title = "Stable Diffusion 3"
    pipelines = ("StableDiffusion3Pipeline",)
    network = SD3Transformer2DModel
    text_kinds = (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)
    required_parts = ("text_encoder_3", "tokenizer_3")
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    )

    def output(self, network: nn.Module, config: Config, call: Call) -> Tensor:
        cond = call.cond
        sample: Tensor = network(
            hidden_states=call.z_t,
            timestep=1000 * call.sigma,
            # Wider than CLIP's by zeros, where there is no T5 that has the width.
            encoder_hidden_states=pad(cond.embeddings, (0, config.joint_attention_dim - cond.embeddings.shape[-1])),
            pooled_projections=cond.pooled,
        ).sample
        return sample

    def blank(self, config: Config, rows: int, *, dtype: torch.dtype, device: torch.device) -> Condition:
        embeddings = torch.empty(rows, CLIP_TOKENS + T5_TOKENS, config.joint_attention_dim, dtype=dtype, device=device)
        return Condition(embeddings, torch.empty(rows, config.pooled_projection_dim, dtype=dtype, device=device))

    def text_parts(self, folder: Path) -> tuple[TextPart, ...]:
        clips = tuple(TextPart(f"text_encoder{suffix}", f"tokenizer{suffix}", CLIPTextModelWithProjection) for suffix in ("", "_2"))
        third = read_json(folder / "model_index.json").get("text_encoder_3")
        has_t5 = isinstance(third, list) and third[0] is not None
        return (*clips, TextPart("text_encoder_3", "tokenizer_3", T5EncoderModel, T5_TOKENS)) if has_t5 else clips

    def encode(self, towers: Sequence[TextTower], ids: Tensor) -> Condition:
        parts = split_ids(towers, ids)
        outputs = [tower.model(part, output_hidden_states=True) for tower, part in zip(towers[:2], parts[:2], strict=True)]
        # SD3, Appendix B.3: the last layer but one of both CLIP encoders, side by side, zeros up to T5's width, then T5's tokens
        clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        if len(towers) == 2:
            return Condition(pad(clip, (0, 0, 0, T5_TOKENS)), pooled)
        t5 = towers[2].model(parts[2]).last_hidden_state
        return Condition(torch.cat([pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], dim=1), pooled)
