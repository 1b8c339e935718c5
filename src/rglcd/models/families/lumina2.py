"""Lumina-Image 2.0: a flow whose network counts time and velocity from noise to data; Gemma reads a system prompt before the caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor, nn
from transformers import Gemma2Model

from rglcd.core.condition import Condition
from rglcd.models.families.protocol import Call, Config, Family
from rglcd.models.text_towers import TextPart, TextTower

TOKENS: Final = 256
"""``max_sequence_length`` of diffusers' pipeline."""
SYSTEM_PROMPT: Final = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on textual prompts "
    "or user prompts."
)
"""``system_prompt`` of diffusers' pipeline."""


class Lumina2(Family):
    """The network is given 1 - sigma as time and gives data less noise. Its guidance is plain: diffusers' ``cfg_normalization=False``."""

    title = "Lumina-Image 2.0"
    # The second as diffusers called it at first: folders of its first weeks.
    pipelines = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
    network = Lumina2Transformer2DModel
    text_kinds = (Gemma2Model,)
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

    def output(self, network: nn.Module, config: Config, call: Call) -> Tensor:
        sample: Tensor = network(
            hidden_states=call.z_t,
            timestep=1 - call.sigma,
            encoder_hidden_states=call.cond.embeddings,
            encoder_attention_mask=call.cond.mask,
        ).sample
        return -sample

    def blank(self, config: Config, rows: int, *, dtype: torch.dtype, device: torch.device) -> Condition:
        embeddings = torch.empty(rows, TOKENS, config.cap_feat_dim, dtype=dtype, device=device)
        # The network reads from the mask how long each caption is, which a tensor without values could not say: all are of full length.
        return Condition(embeddings, mask=torch.ones(rows, TOKENS, dtype=torch.bool, device="cpu" if device.type == "meta" else device))

    def text_parts(self, folder: Path) -> tuple[TextPart, ...]:
        return (TextPart("text_encoder", "tokenizer", Gemma2Model, TOKENS),)

    def tokenise(self, towers: Sequence[TextTower], captions: Sequence[str]) -> Tensor:
        return towers[0].ids([f"{SYSTEM_PROMPT} <Prompt Start> {caption}" for caption in captions])

    def encode(self, towers: Sequence[TextTower], ids: Tensor) -> Condition:
        model = towers[0].model
        mask = towers[0].mask(ids).to(model.device)
        states = model(ids.to(model.device), attention_mask=mask, output_hidden_states=True).hidden_states
        return Condition(states[-2], mask=mask)

    def null(self, towers: Sequence[TextTower]) -> Condition:
        """The empty caption alone, without the system prompt, as in the pipeline."""
        return self.encode(towers, towers[0].ids([""]))

    def mask(self, towers: Sequence[TextTower], ids: Tensor) -> Tensor:
        return towers[0].mask(ids)
