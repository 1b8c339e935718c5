"""SANA: a flow in the latents of a deep-compression autoencoder; Gemma reads an instruction before the caption (arXiv 2410.10629)."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn
from transformers import Gemma2Model

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.families.protocol import Call, Config, Family
from rglcd.models.text_towers import TextPart, TextTower

TOKENS: Final = 300
"""``max_sequence_length`` of diffusers' pipeline: what is left of the instruction and the caption."""
INSTRUCTION: Final = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
"""The pipeline's own, which its training put before every caption (Section 3.1)."""


OMEGA_EMBEDDING_DIM: Final = 256
"""Of diffusers' ``SanaCombinedTimestepGuidanceEmbeddings``."""
_TIME, _SPRINT_TIME, _SPRINT_OMEGA = "time_embed.emb.timestep_embedder.", "time_embed.timestep_embedder.", "time_embed.guidance_embedder."


class Sana(Family):
    """The network is given 1000 sigma times its ``timestep_scale`` as time. Its scheduler may be DPM-Solver with flow sigmas.

    A student that is given omega is a SANA-Sprint (arXiv 2503.09641): the same network with an embedding of ``guidance_scale``. Its
    pipeline writes the path as TrigFlow, cos(a) x0 + sin(a) eps, and divides by cos(a) + sin(a) before each call: that is the flow's
    z at sigma = sin / (cos + sin).
    """

    title = "SANA"
    pipelines = ("SanaPipeline", "SanaSprintPipeline")
    network = SanaTransformer2DModel
    seeds_scheduler = True
    # Else pictures are drawn at the nearest of its own sizes.
    calling = "use_resolution_binning=False"
    text_kinds = (Gemma2Model,)
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    omega_layers: ClassVar[tuple[str, ...]] = tuple(
        f"{_SPRINT_OMEGA}linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")
    )

    def output(self, network: nn.Module, config: Config, call: Call) -> Tensor:
        sample: Tensor = network(
            call.z_t,
            timestep=1000 * call.sigma * config.timestep_scale,
            guidance=None if call.omega is None else (1 + call.omega) * config.guidance_embeds_scale,
            encoder_hidden_states=call.cond.embeddings,
            encoder_attention_mask=call.cond.mask,
        ).sample
        return sample[:, : config.in_channels]

    def takes_omega(self, config: Config) -> bool:
        return bool(config.guidance_embeds)

    def student_config(self, config: Mapping[str, Any], *, omega_embedding_dim: int | None) -> dict[str, Any]:
        if omega_embedding_dim is None:
            return dict(config)
        if omega_embedding_dim != OMEGA_EMBEDDING_DIM:
            raise InputError(f"distillation.student.omega_embedding_dim: a student of SANA has {OMEGA_EMBEDDING_DIM}; leave it out")
        if 1000 * config["timestep_scale"] != 1:
            raise InputError(
                f"distillation.student: this teacher reads 1000 sigma times a timestep_scale of {config['timestep_scale']}, and the "
                "pipeline of students that are given omega, SanaSprintPipeline, gives sigma itself; set kind to same_inputs, or name a "
                "teacher of timestep_scale 0.001"
            )
        return {**config, "guidance_embeds": True}

    def renamed(self, state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        return {name.replace(_TIME, _SPRINT_TIME) if config.guidance_embeds else name: tensor for name, tensor in state.items()}

    @torch.no_grad()
    def start_omega(self, network: nn.Module) -> None:
        """The first layer as that for time, which embeds the same sines; the second, which leads on, at zero."""
        for kind in ("weight", "bias"):
            network.get_parameter(f"{_SPRINT_OMEGA}linear_1.{kind}").copy_(network.get_parameter(f"{_SPRINT_TIME}linear_1.{kind}"))
            nn.init.zeros_(network.get_parameter(f"{_SPRINT_OMEGA}linear_2.{kind}"))

    def exported(self, config: Config) -> tuple[str, str]:
        return (self.pipelines[1], "SCMScheduler") if config.guidance_embeds else super().exported(config)

    def refuse_conditioning(self, config: Config, folder: Path) -> None:
        if config.guidance_embeds:
            raise InputError(
                f"{folder / self.folder} is given its guidance scale: it is SANA-Sprint, a student already; "
                "name the SANA it was distilled from"
            )

    def blank(self, config: Config, rows: int, *, dtype: torch.dtype, device: torch.device) -> Condition:
        embeddings = torch.empty(rows, TOKENS, config.caption_channels, dtype=dtype, device=device)
        return Condition(embeddings, mask=torch.ones(rows, TOKENS, dtype=torch.bool, device=device))

    def text_parts(self, folder: Path) -> tuple[TextPart, ...]:
        return (TextPart("text_encoder", "tokenizer", Gemma2Model, TOKENS),)

    def tokenise(self, towers: Sequence[TextTower], captions: Sequence[str]) -> Tensor:
        (tower,) = towers
        instructed = [INSTRUCTION + caption.lower().strip() for caption in captions]
        return tower.ids(instructed, length=len(tower.tokenizer.encode(INSTRUCTION)) + TOKENS - 2)

    def encode(self, towers: Sequence[TextTower], ids: Tensor) -> Condition:
        model = towers[0].model
        mask = towers[0].mask(ids).to(model.device)
        return Condition(_left(model(ids.to(model.device), attention_mask=mask).last_hidden_state), mask=_left(mask))

    def null(self, towers: Sequence[TextTower]) -> Condition:
        """The empty caption alone, without the instruction, as in the pipeline."""
        return self.encode(towers, towers[0].ids([""]))

    def mask(self, towers: Sequence[TextTower], ids: Tensor) -> Tensor:
        return _left(towers[0].mask(ids))


def _left(tokens: Tensor) -> Tensor:
    """(B, L, ...) -> (B, 300, ...): the first token and the last 299, which the pipeline leaves of all."""
    return torch.cat([tokens[:, :1], tokens[:, 1 - TOKENS :]], dim=1)
