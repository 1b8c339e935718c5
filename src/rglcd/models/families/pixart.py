"""PixArt-Sigma: a transformer that predicts eps and a variance, of which the variance is dropped; T5 with a mask (arXiv 2403.04692)."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.families.protocol import Call, Config, Family
from rglcd.models.text_towers import TextPart, TextTower

T5_TOKENS: Final = 300
"""``max_sequence_length`` of diffusers' pipeline."""


class PixArtSigma(Family):
    """Captions are in small letters, as the pipeline has them with ``clean_caption=False``."""

    title = "PixArt-Sigma"
    pipelines = ("PixArtSigmaPipeline",)
    network = PixArtTransformer2DModel
    is_flow = False
    seeds_scheduler = True
    # Else pictures are drawn at the nearest of its own sizes, and BeautifulSoup, where it is installed, changes captions.
    calling = "use_resolution_binning=False, clean_caption=False"
    loads_adapters = False
    text_kinds = (T5EncoderModel,)
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def output(self, network: nn.Module, config: Config, call: Call) -> Tensor:
        sample: Tensor = network(
            call.z_t,
            timestep=call.t,
            encoder_hidden_states=call.cond.embeddings,
            encoder_attention_mask=call.cond.mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        return sample[:, : config.in_channels]

    def refuse_conditioning(self, config: Config, folder: Path) -> None:
        if config.use_additional_conditions:
            raise InputError(
                f"{folder / self.folder} says use_additional_conditions: it is conditioned on sizes, as PixArt-Alpha at 1024 pixels; "
                "not supported"
            )

    def blank(self, config: Config, rows: int, *, dtype: torch.dtype, device: torch.device) -> Condition:
        embeddings = torch.empty(rows, T5_TOKENS, config.caption_channels, dtype=dtype, device=device)
        return Condition(embeddings, mask=torch.ones(rows, T5_TOKENS, dtype=torch.bool, device=device))

    def text_parts(self, folder: Path) -> tuple[TextPart, ...]:
        return (TextPart("text_encoder", "tokenizer", T5EncoderModel, T5_TOKENS),)

    def tokenise(self, towers: Sequence[TextTower], captions: Sequence[str]) -> Tensor:
        return towers[0].ids([caption.lower().strip() for caption in captions])

    def encode(self, towers: Sequence[TextTower], ids: Tensor) -> Condition:
        model = towers[0].model
        mask = towers[0].mask(ids).to(model.device)
        return Condition(model(ids.to(model.device), attention_mask=mask).last_hidden_state, mask=mask)

    def mask(self, towers: Sequence[TextTower], ids: Tensor) -> Tensor:
        return towers[0].mask(ids)
