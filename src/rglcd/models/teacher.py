"""The teacher: a frozen Stable Diffusion UNet (1.x, 2.x or XL) whose output is converted to (x0, eps).

Shapes: B batch, (C, h, w) latents.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule
from rglcd.errors import InputError
from rglcd.models.families import refuse_other_schedules
from rglcd.models.loading import load_weights, read_json
from rglcd.models.text import is_xl

XL_CONDITIONING = "text_time"
"""``addition_embed_type`` of SDXL's UNet: pooled caption and embedded sizes are added to the time embedding."""


class Teacher:
    """``teacher(z_t, t, cond)`` predicts the clean latents and the noise; no gradient, ever."""

    def __init__(self, unet: UNet2DConditionModel, schedule: NoiseSchedule, kind: PredictionType) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.schedule = schedule
        self.kind = kind

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "Teacher":
        """UNet and noise schedule of the diffusers pipeline in ``folder``."""
        unet = load_weights(UNet2DConditionModel, folder / "unet", dtype=dtype).to(device)
        if unet.config.time_cond_proj_dim is not None:
            raise InputError(
                f"{folder}/unet already takes a guidance embedding: it is a distilled student; name the teacher that it was distilled from"
            )
        given = XL_CONDITIONING if is_xl(folder) else None
        if unet.config.addition_embed_type != given or unet.config.class_embed_type is not None:
            taken = unet.config.addition_embed_type or unet.config.class_embed_type
            raise InputError(
                f"{folder}/unet takes {taken or 'a caption alone'} as conditioning and its pipeline gives {given or 'a caption alone'}: "
                "name a teacher of Stable Diffusion 1.x, 2.x or XL"
            )
        schedule, kind = read_schedule(folder / "scheduler")
        return cls(unet, schedule.to(device=device), kind)

    @torch.no_grad()
    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Prediction at (B, C, h, w) ``z_t``, (B,) integer ``t``, B rows of ``cond``."""
        return convert(self.output(z_t, t, cond), z_t, t, schedule=self.schedule, kind=self.kind)

    @torch.no_grad()
    def output(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """What the network itself gives (B, C, h, w), of its own prediction type; arguments as for a call."""
        dtype = self.unet.dtype
        output: Tensor = self.unet(z_t.to(dtype), t, **unet_kwargs(cond.to(dtype=dtype))).sample
        return output.to(z_t.dtype)


def unet_kwargs(cond: Condition) -> dict[str, Any]:
    """``cond`` as the arguments of diffusers' UNet."""
    if cond.pooled is None:
        return {"encoder_hidden_states": cond.embeddings}
    return {"encoder_hidden_states": cond.embeddings, "added_cond_kwargs": {"text_embeds": cond.pooled, "time_ids": cond.time_ids}}


def read_schedule(folder: Path) -> tuple[NoiseSchedule, PredictionType]:
    """The noise schedule and prediction type that a diffusers scheduler folder declares. Raises :class:`InputError`."""
    path = folder / "scheduler_config.json"
    declared = read_json(path)
    refuse_other_schedules(declared, where=path)
    try:
        kind = PredictionType(declared.get("prediction_type", "epsilon"))
    except ValueError:
        known = ", ".join(kind.value for kind in PredictionType)
        raise InputError(f"{folder}: prediction_type {declared['prediction_type']!r} is none of {known}; name another teacher") from None
    # Every discrete scheduler of diffusers shares these keys; DDPM's class, which knows all schedules, multiplies the alphas.
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    try:
        scheduler = DDPMScheduler(**{key: declared[key] for key in keys if key in declared})
        schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} describes no noise schedule: {' '.join(str(error).split())[:300]}") from None
    if schedule.has_zero_terminal_snr and kind is PredictionType.EPSILON:
        # Pure noise holds nothing of x0, so predicting the noise says nothing: arXiv 2305.08891, Sec. 3.1
        raise InputError(
            f"{path} says rescale_betas_zero_snr and prediction_type epsilon: at its last timestep there is nothing to predict; "
            "name a teacher that was trained on v_prediction, or one without it"
        )
    return schedule, kind
